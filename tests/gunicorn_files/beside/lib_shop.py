"""Needs a directory of pythonpath."""

from extra_lib import PLACE
from shop import app as inner


def app(environ, start_response):
    if environ["PATH_INFO"] == "/lib":
        start_response("200 OK", [("Content-Length", str(len(PLACE))), ("X-Shop", "lib")])
        return [PLACE.encode()]
    return inner(environ, start_response)
