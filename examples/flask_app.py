"""A Flask application with a little of everything: forms, JSON, uploads, streams, cookies, errors.

wsgiserv -w 4 flask_app:app
"""

import hashlib

from flask import Flask, Response, abort, jsonify, make_response, redirect, request, url_for

app = Flask(__name__)


@app.get("/")
def index():
    """Greet."""
    return "Hello from Flask\n"


@app.get("/items/<int:number>")
def item(number):
    """Show how a part of the path and the query arrive."""
    return jsonify(number=number, query=request.args.to_dict())


@app.post("/form")
def form():
    """Answer with the fields of a form."""
    return jsonify(request.form.to_dict())


@app.post("/json")
def json():
    """Answer with the JSON that was sent."""
    return jsonify(received=request.get_json())


@app.post("/upload")
def upload():
    """Take a file, of any size: large bodies arrive in a file on disk, not in memory."""
    file = request.files["file"]
    digest, size = hashlib.sha256(), 0
    while data := file.stream.read(1 << 16):
        digest.update(data)
        size += len(data)
    return jsonify(name=file.filename, size=size, sha256=digest.hexdigest())


@app.get("/stream")
def stream():
    """Send a response piece by piece, its length unknown when it begins."""
    return Response((f"line {number}\n" for number in range(1000)), mimetype="text/plain")


@app.get("/redirect")
def to_index():
    """Redirect to the first page."""
    return redirect(url_for("index"))


@app.get("/cookies/set")
def set_cookies():
    """Set two cookies."""
    response = make_response("set\n")
    response.set_cookie("flavour", "chocolate", httponly=True)
    response.set_cookie("size", "large")
    return response


@app.get("/cookies")
def cookies():
    """Show the cookies that came."""
    return jsonify(request.cookies.to_dict())


@app.get("/missing")
def missing():
    """A 404 from within the application."""
    abort(404)


@app.get("/error")
def error():
    """An exception, which Flask answers with a 500 and puts into the error log."""
    raise RuntimeError("this view fails on purpose")
