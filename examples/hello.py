"""The smallest application: plain WSGI (PEP 3333), no framework.

wsgiserv hello:app
"""


def app(environ, start_response):
    """Answer every request with a line of text."""
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [b"Hello from wsgiserv\n"]
