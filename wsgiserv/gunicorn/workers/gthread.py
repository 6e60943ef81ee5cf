"""`ThreadWorker`: a pool of threads."""

from __future__ import annotations

from wsgiserv.gunicorn.workers.base import Worker
from wsgiserv.worker import threads


class ThreadWorker(Worker, threads.ThreadsWorker):
    """gunicorn's gthread worker, on wsgiserv's threads."""
