# The server's name is not shown to the world.
#: get /
#: header Server

import gunicorn

gunicorn.SERVER = "shop"
gunicorn.SERVER_SOFTWARE = "shop/1"
