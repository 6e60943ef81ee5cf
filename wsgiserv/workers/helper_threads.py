"""Starting the threads that a worker needs besides the application's calls.

Owns: `start_helper`, and what is said when the system starts no more threads.
Must not know: what the threads do.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

from wsgiserv.errors import BootError

__all__ = ["cannot_start", "start_helper"]


def start_helper(target: Callable[..., Any], name: str, *arguments: Any) -> None:
    """Start a thread that does not keep the process alive.

    Raises BootError when the system starts no more threads: a worker without it must not become ready.
    """
    try:
        Thread(target=target, args=arguments, name=name, daemon=True).start()
    except RuntimeError as error:
        raise cannot_start(name, error) from error


def cannot_start(name: str, error: RuntimeError) -> BootError:
    """Return the error for a thread that a worker cannot do without."""
    return BootError(
        f"cannot start the thread {name}: {error}. Raise the limit of processes and threads (ulimit -u, LimitNPROC=, "
        "TasksMax=, pids.max of a container) or of memory (ulimit -v)"
    )
