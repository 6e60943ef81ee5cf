"""A web.py application: a page, a form, an upload, a stream, an error.

wsgiserv -k threads webpy_app:app
"""

import hashlib
import json

import web

# Unless it is told otherwise, web.py takes every server for a developer's: it looks for changed modules
# at each request and shows tracebacks to clients.
web.config.debug = False


def as_json(value):
    """Answer with JSON."""
    web.header("Content-Type", "application/json")
    return json.dumps(value)


class Index:
    """Greet."""

    def GET(self):
        web.header("Content-Type", "text/plain; charset=utf-8")
        return "Hello from web.py\n"


class Form:
    """Answer with the fields of a form."""

    def POST(self):
        return as_json(web.input(_method="post"))


class Upload:
    """Take a file, of any size."""

    def POST(self):
        file = web.input(file={}).file
        digest = hashlib.file_digest(file.file, "sha256")
        return as_json({"name": file.filename, "size": file.file.tell(), "sha256": digest.hexdigest()})


class Stream:
    """Send a response piece by piece, its length unknown when it begins."""

    def GET(self):
        web.header("Content-Type", "text/plain")
        for number in range(1000):
            yield f"line {number}\n"


class Error:
    """An exception, which web.py answers with a 500 and prints to the standard error."""

    def GET(self):
        raise RuntimeError("this view fails on purpose")


urls = ("/", Index, "/form", Form, "/upload", Upload, "/stream", Stream, "/error", Error)
app = web.application(urls).wsgifunc()
