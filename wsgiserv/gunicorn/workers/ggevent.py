"""`GeventWorker`: a greenlet for each request."""

from __future__ import annotations

from typing import Any

from wsgiserv.gunicorn.workers.base_async import AsyncWorker
from wsgiserv.worker import gevent_worker


class GeventWorker(AsyncWorker, gevent_worker.GeventWorker):
    """gunicorn's gevent worker, on wsgiserv's."""

    def patch(self) -> None:  # type: ignore[override]
        """Do nothing: the library is patched by now. A subclass patches more, a database's driver for one."""

    def init_process(self) -> None:
        """Call `patch`; boot and serve, and return when the worker has left."""
        self.patch()
        super().init_process()

    server_class: Any = None
    wsgi_handler: Any = None


class GeventPyWSGIWorker(GeventWorker):
    """The same: there is one parser of requests."""


class PyWSGIWorker(GeventPyWSGIWorker):
    """The same, under its older name."""
