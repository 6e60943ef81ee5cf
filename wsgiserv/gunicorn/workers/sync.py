"""`SyncWorker`: one request at a time."""

from __future__ import annotations

from wsgiserv.gunicorn.workers.base import Worker
from wsgiserv.worker import sync


class SyncWorker(Worker, sync.SyncWorker):
    """gunicorn's sync worker, on wsgiserv's."""
