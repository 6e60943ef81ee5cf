"""A Flask application with its log wired to gunicorn's."""

import logging
import os

from flask import Flask, jsonify, request

app = Flask(__name__)

gunicorn_logger = logging.getLogger("gunicorn.error")
app.logger.handlers = gunicorn_logger.handlers
app.logger.setLevel(gunicorn_logger.level)


@app.get("/")
def index():
    app.logger.info("index is asked for")
    return jsonify(ok=True, scheme=request.scheme, host=request.host)


@app.get("/pid")
def pid():
    return str(os.getpid())


@app.get("/away")
def away():
    return "", 302, {"Location": request.url_root, "X-Shop": "flask"}
