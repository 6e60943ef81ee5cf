"""A Bottle application: a page, a form, an upload, a stream, an error.

wsgiserv -k threads bottle_app:app
"""

import hashlib

from bottle import Bottle, request, response

app = Bottle()


@app.get("/")
def index():
    """Greet."""
    return "Hello from Bottle\n"


@app.post("/form")
def form():
    """Answer with the fields of a form; a dictionary is sent as JSON."""
    return dict(request.forms.decode())


@app.post("/upload")
def upload():
    """Take a file, of any size."""
    file = request.files["file"]
    digest = hashlib.file_digest(file.file, "sha256")
    return {"name": file.filename, "size": file.file.tell(), "sha256": digest.hexdigest()}


@app.get("/stream")
def stream():
    """Send a response piece by piece, its length unknown when it begins."""
    response.content_type = "text/plain"
    for number in range(1000):
        yield f"line {number}\n"


@app.get("/error")
def error():
    """An exception, which Bottle answers with a 500 and puts into the error log."""
    raise RuntimeError("this view fails on purpose")
