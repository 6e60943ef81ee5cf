"""An application in a directory below, that needs its neighbour."""

import neighbour
from shop import app as shop


def app(environ, start_response):
    assert neighbour.HERE
    return shop(environ, start_response)
