# The same as people wrote it for gunicorn 19.
#: get /
#: header Server

import gunicorn

gunicorn.SERVER_SOFTWARE = "intentionally-undisclosed"
workers = 1
