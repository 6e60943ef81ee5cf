"""The shop, which keeps copies of what the server logs."""

import logging

from shop import app  # noqa: F401

audit = logging.FileHandler("audit.log")
audit.setLevel(logging.WARNING)
audit.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
logging.getLogger("gunicorn.error").addHandler(audit)
logging.getLogger("gunicorn.access").addHandler(logging.FileHandler("requests.log"))
