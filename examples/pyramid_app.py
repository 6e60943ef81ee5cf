"""A Pyramid application: a page, a form, an upload, a stream, an error.

wsgiserv -k threads pyramid_app:app
"""

import hashlib

from pyramid.config import Configurator
from pyramid.response import Response
from pyramid.view import view_config


@view_config(route_name="index")
def index(request):
    """Greet."""
    return Response("Hello from Pyramid\n", content_type="text/plain", charset="utf-8")


@view_config(route_name="form", request_method="POST", renderer="json")
def form(request):
    """Answer with the fields of a form."""
    return dict(request.POST)


@view_config(route_name="upload", request_method="POST", renderer="json")
def upload(request):
    """Take a file, of any size."""
    field = request.POST["file"]
    digest = hashlib.file_digest(field.file, "sha256")
    return {"name": field.filename, "size": field.file.tell(), "sha256": digest.hexdigest()}


@view_config(route_name="stream")
def stream(request):
    """Send a response piece by piece, its length unknown when it begins."""
    lines = (f"line {number}\n".encode() for number in range(1000))
    return Response(app_iter=lines, content_type="text/plain", charset="utf-8")


@view_config(route_name="error")
def error(request):
    """An exception: Pyramid leaves it to the server, which logs it and answers 500."""
    raise RuntimeError("this view fails on purpose")


with Configurator() as config:
    config.add_route("index", "/")
    for name in ("form", "upload", "stream", "error"):
        config.add_route(name, f"/{name}")
    config.scan(__name__)
    app = config.make_wsgi_app()
