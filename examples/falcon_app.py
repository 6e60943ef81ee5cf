"""A Falcon application: a page, a form, an upload, a stream, an error.

wsgiserv -k threads falcon_app:app
"""

import hashlib

import falcon


class Index:
    """Greet."""

    def on_get(self, request, response):
        response.content_type = falcon.MEDIA_TEXT
        response.text = "Hello from Falcon\n"


class Form:
    """Answer with the fields of a form."""

    def on_post(self, request, response):
        response.media = request.get_media()


class Upload:
    """Take a file, of any size: Falcon parses the form while it is read."""

    def on_post(self, request, response):
        for part in request.get_media():
            if part.name == "file":
                digest, size = hashlib.sha256(), 0
                while data := part.stream.read(1 << 16):
                    digest.update(data)
                    size += len(data)
                response.media = {"name": part.filename, "size": size, "sha256": digest.hexdigest()}


class Stream:
    """Send a response piece by piece, its length unknown when it begins."""

    def on_get(self, request, response):
        response.content_type = falcon.MEDIA_TEXT
        response.stream = (f"line {number}\n".encode() for number in range(1000))


class Error:
    """An exception, which Falcon answers with a 500 and puts into the error log."""

    def on_get(self, request, response):
        raise RuntimeError("this view fails on purpose")


app = falcon.App()
app.add_route("/", Index())
app.add_route("/form", Form())
app.add_route("/upload", Upload())
app.add_route("/stream", Stream())
app.add_route("/error", Error())
