"""Programs of the field, each used by its own client: those that are installed in seconds.

`python -m tests.soak programs` has the others.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from fieldapps import PROGRAMS
from fieldprograms import Program, is_answering, started
from server import wait_until

QUICK = (
    "prometheus_client",
    "prometheus_client, preload",
    "prometheus-flask-exporter",
    "sentry-sdk",
    "whitenoise",
    "structlog",
    "python-json-logger",
    "pypiserver",
)


def need_packages(program: Program) -> None:
    """Skip the test where a package is missing; under WSGISERV_REQUIRE_SYSTEM=1, fail it."""
    for package in program.packages:
        try:
            version(package.partition("[")[0])
        except PackageNotFoundError:
            if os.environ.get("WSGISERV_REQUIRE_SYSTEM") == "1":
                pytest.fail(f"{package} is not installed, and WSGISERV_REQUIRE_SYSTEM=1; the extra test has it")
            pytest.skip(f"{package} is not installed: pip install {package}")


@pytest.mark.parametrize("name", QUICK)
def test_a_program_works_with_its_own_client(name: str, worker_class: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    need_packages(program)
    with started(program, worker_class, Path(sys.prefix), tmp_path) as running:
        wait_until(lambda: running.server.process.poll() is not None or is_answering(running), "an answer")
        assert program.use(running)
