"""What tests must know of the gevent that is installed: the oldest one that the server takes is three years older."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest


def _release() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version("gevent"))[:3]))


def needs_gevent_of_gunicorn(worker_class: str) -> None:
    """Skip a test that runs gunicorn with gevent, where its worker refuses this one."""
    if worker_class == "gevent" and _release() < (24, 10, 1):
        pytest.skip("gunicorn's gevent worker wants gevent 24.10.1")


def needs_silent_gevent(worker_class: str) -> None:
    """Skip a test of Python's warnings, where gevent itself causes some."""
    if worker_class == "gevent" and _release() < (23, 7):
        pytest.skip("this gevent imports pkg_resources, which warns")
