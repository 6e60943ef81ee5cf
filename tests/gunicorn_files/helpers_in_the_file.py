# Constants, functions and classes of the file's own, annotations, a main block.
#: get /
#: wait ready

from __future__ import annotations

import logging
import os
import typing as t
from dataclasses import dataclass
from pathlib import Path

from record import note

BASE_DIR: Path = Path(__file__).resolve().parent
DEFAULT_WORKERS: t.Final[int] = 1
workers: int = DEFAULT_WORKERS
timeout: int = 30
max_memory = 200 * 1024 * 1024
worker_memory_limit = max_memory
log = logging.getLogger(__name__)
debug = True
django_settings = "shop.settings"


@dataclass
class Limits:
    memory: int
    requests: int = 100


limits = Limits(max_memory)


def number_of_workers() -> int:
    return (os.cpu_count() or 1) * 2 + 1


class Paste:
    """Not gunicorn's setting."""


def when_ready(server) -> None:
    note("ready", BASE_DIR == Path.cwd(), limits.requests, number_of_workers() > 1, server.cfg.workers)


if __name__ == "__main__":
    print("bind is", globals().get("bind"))
