"""`AsyncWorker`: the base of gunicorn's worker for gevent."""

from __future__ import annotations

from wsgiserv.gunicorn.workers.base import Worker


class AsyncWorker(Worker):
    """The base of workers with greenlets."""
