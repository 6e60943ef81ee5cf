"""Servers of root whose workers run as another user: an interpreter and directories that this user can reach."""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from server import ROOT, Server, without_coverage

NOBODY = pwd.getpwnam("nobody")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run workers as another user")


def _others_may_reach(path: Path) -> bool:
    return all(place.stat().st_mode & 0o001 for place in (path, *path.parents))


def _interpreter() -> str | None:
    """Return a Python of this version that every user may run, or None."""
    if _others_may_reach(Path(sys.base_prefix).resolve()):
        return sys.executable
    system = Path("/usr/bin") / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return str(system) if system.exists() else None


ROOT_PYTHON = _interpreter()
needs_public_python = pytest.mark.skipif(
    ROOT_PYTHON is None or not _others_may_reach(ROOT), reason="other users may not read this Python or this tree"
)


def environment_of_workers() -> dict[str, str]:
    """Return what the interpreter needs to find the packages of this one."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support"), *packages])}


@contextmanager
def public_directory() -> Iterator[Path]:
    """Make a directory that every user can enter: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="wsgiserv-root-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def start_as_root(
    directory: Path,
    app: str,
    *args: str,
    worker_class: str = "sync",
    expect: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> Server:
    """Start a server of root's in this directory; the caller stops and closes it."""
    assert ROOT_PYTHON is not None
    command = [ROOT_PYTHON, "-m", "wsgiserv", "-k", worker_class, "-b", "127.0.0.1:0", *args, app]
    with without_coverage():  # the workers' user may not write its files
        return Server(
            directory,
            None,
            worker_class=None,
            bind="none",
            command=command,
            env={**environment_of_workers(), **(env or {})},
            expect=expect,
        )
