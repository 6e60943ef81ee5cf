"""Plain Werkzeug, without a framework: a page, a form, an upload, a stream, an error, static files, the debugger.

wsgiserv -k threads werkzeug_app:app

With the debugger's page in place of "500 Internal Server Error", on your own machine only:

wsgiserv --reload werkzeug_app:debugged
"""

import hashlib
import json
from pathlib import Path

from werkzeug.debug import DebuggedApplication
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.shared_data import SharedDataMiddleware
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response


def as_json(value):
    """Answer with JSON."""
    return Response(json.dumps(value), mimetype="application/json")


def index(request):
    """Greet."""
    return Response("Hello from Werkzeug\n")


def form(request):
    """Answer with the fields of a form."""
    return as_json(request.form.to_dict())


def upload(request):
    """Take a file, of any size."""
    file = request.files["file"]
    digest = hashlib.file_digest(file.stream, "sha256")
    return as_json({"name": file.filename, "size": file.stream.tell(), "sha256": digest.hexdigest()})


def stream(request):
    """Send a response piece by piece, its length unknown when it begins."""
    return Response(f"line {number}\n" for number in range(1000))


def error(request):
    """An exception: nothing here catches it, so the server logs it and answers 500."""
    raise RuntimeError("this view fails on purpose")


ROUTES = Map(
    [
        Rule("/", endpoint=index),
        Rule("/form", endpoint=form, methods=["POST"]),
        Rule("/upload", endpoint=upload, methods=["POST"]),
        Rule("/stream", endpoint=stream),
        Rule("/error", endpoint=error),
    ]
)


@Request.application
def site(request):
    """Find the view and call it; an unknown path or method is an answer as well (404, 405)."""
    try:
        view, values = ROUTES.bind_to_environ(request.environ).match()
        return view(request, **values)
    except HTTPException as answer:
        return answer


# Files leave through wsgi.file_wrapper: the kernel sends them (sendfile), no Python reads them.
app = SharedDataMiddleware(site, {"/static": str(Path(__file__).parent / "static")})

# Tracebacks in the browser. Its console (evalex=True) would run whatever a visitor types, and it keeps its
# frames in one process: use it with one worker (-w 1), and never in public.
debugged = DebuggedApplication(app, evalex=False)
