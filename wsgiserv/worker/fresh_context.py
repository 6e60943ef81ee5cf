"""Runs each request with the context variables that were set before the first one (PEP 567).

Owns: the choice between the thread's context and a context per request.
Must not know: threads and loops.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgiserv.net.client import Connection

__all__ = ["fresh_contexts"]


def fresh_contexts(clean: Context) -> Callable[..., float]:
    """Return a function that calls `Connection.run`, and keeps what one request sets from the next.

    A context per request costs 0.2 µs. Requests run in the thread's own context until one of them leaves a variable
    set; all later requests get a copy of ``clean``.

    Args:
        clean: the variables that each request finds. The contexts of the threads that call the function equal it.
    """
    is_left_clean = not clean

    def run(connection: Connection, cell: int = 0) -> float:
        nonlocal is_left_clean
        if not is_left_clean:
            return clean.copy().run(connection.run, cell)
        try:
            return connection.run(cell)
        finally:
            if copy_context():
                is_left_clean = False

    return run
