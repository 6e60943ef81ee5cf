"""Mounts an application under a path that requests must have (``root_path_outside = "refuse"``)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from wsgiserv.config.settings import Settings
from wsgiserv.logs.escape import escape

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def mounted_as(settings: Settings, app: App, log: logging.Logger) -> App:
    """Return the application as these settings mount it: itself, unless paths outside of `root_path` are refused."""
    if not settings.root_path or settings.root_path_outside == "serve":
        return app  # the parser of the requests splits their paths
    return mount_strictly(app, settings.root_path, settings.readiness_path, log)


def mount_strictly(app: App, root: str, also: str, log: logging.Logger) -> App:
    """Wrap a WSGI application: requests outside of ``root`` are answered with 400, as gunicorn answers them.

    Args:
        app: gets all other requests, with ``root`` as ``SCRIPT_NAME``.
        root: the path, without a slash at its end.
        also: a path outside of it that the application gets as well (`readiness_path`); or empty.
        log: the error log.
    """
    below = f"{root}/"

    def mounted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        # A trusted proxy has told another SCRIPT_NAME, which goes before the environment's.
        if environ["SCRIPT_NAME"]:
            return app(environ, start_response)
        environ["SCRIPT_NAME"] = root
        if path.startswith(below) or path == root:
            environ["PATH_INFO"] = path[len(root) :]
        elif path != also or not also:
            environ["SCRIPT_NAME"] = ""
            return refuse(environ, start_response)
        return app(environ, start_response)

    def refuse(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        client, path = environ.get("REMOTE_ADDR") or "a client", escape(environ["PATH_INFO"])
        log.warning("WS1785 %s: refused with 400: the path %s is outside of SCRIPT_NAME, %s", client, path, root)
        body = b"400 Bad Request: the path is outside of the application's.\n"
        start_response("400 Bad Request", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    return mounted
