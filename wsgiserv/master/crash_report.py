"""A death certificate: what is known of a worker that died unasked, or was killed for what it did not do.

Owns: `Certificate`, its words for the log and its names for a program.
Must not know: how any of it was found out.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from time import gmtime, strftime
from typing import Any, Final, Literal, TypeAlias

from wsgiserv.logs.access import LostRequest
from wsgiserv.logs.escape import escape
from wsgiserv.wording import counted

__all__ = ["Cause", "Certificate", "requests_in_words"]

# Who ended it: this server, the kernel for want of memory, a fault in C code, the application itself, somebody else.
Cause: TypeAlias = Literal["server", "out of memory", "crash", "application", "somebody", "unknown"]

_MOST_LINES: Final = 20
# A page of a log, not a book: the innermost frames of each thread come first.
_MOST_STACK_LINES: Final = 400
_INDENT: Final = "    "


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is known.

    Attributes:
        pid, age, generation: who it was.
        died_at: when it was found dead, ``time.time()`` seconds.
        lived_s: how long it had lived, in seconds.
        was_ready: whether it had ever served.
        requests, errors: what it had answered, and how much of that with 5xx.
        connections: the clients that were connected to it, when it counted them last (it does once a second).
        how: ``was killed by SIGSEGV``.
        exit_status: None when it was killed by a signal, or nobody knows.
        signal: the signal's name, None when there was none.
        cause: who ended it.
        reason: why, in words.
        rss_bytes, rss_age_s: its resident memory when it was seen last, and how long before its end; 0 is unknown.
        max_rss_bytes: the most memory that it, or a process that it had waited for, had; 0 is unknown.
        lost: the requests in the application at its end, oldest first. One whose response had just left, and that
            the worker had not noted as done yet, is among them.
        stacks: what was running; or empty.
        stacks_by: who tells that: the worker itself, or the interpreter's faulthandler; or empty.
    """

    pid: int
    age: int
    generation: int
    died_at: float
    lived_s: float
    was_ready: bool
    requests: int
    errors: int
    connections: int
    how: str
    exit_status: int | None
    signal: str | None
    cause: Cause
    reason: str
    rss_bytes: int = 0
    rss_age_s: float = 0.0
    max_rss_bytes: int = 0
    lost: tuple[LostRequest, ...] = ()
    stacks: str = ""
    stacks_by: Literal["", "worker", "faulthandler"] = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it fit for JSON, for ``wsgiservctl status --json``. Text that came from clients is as it came."""
        seconds, fraction = divmod(self.died_at, 1)
        died = f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(seconds))}.{int(fraction * 1000):03d}+00:00"
        return {
            "pid": self.pid,
            "age": self.age,
            "generation": self.generation,
            "died": died,
            "lived_s": round(self.lived_s, 1),
            "was_ready": self.was_ready,
            "requests": self.requests,
            "errors": self.errors,
            "connections": self.connections,
            "exit_status": self.exit_status,
            "signal": self.signal,
            "cause": self.cause,
            "reason": self.reason,
            "rss_bytes": self.rss_bytes or None,
            "rss_age_s": round(self.rss_age_s, 1) if self.rss_bytes else None,
            "max_rss_bytes": self.max_rss_bytes or None,
            "in_flight": [
                {
                    "request_line": lost.request_line,
                    "peer": lost.peer,
                    "id": lost.request_id,
                    "age_s": round(lost.age_s, 3),
                }
                for lost in self.lost
            ],
            "stacks": self.stacks,
            "stacks_by": self.stacks_by,
        }

    def text(self) -> str:
        """Return it for the error log: a line that says it all, and below it, indented, what there is to know."""
        requests = counted(self.requests, "request")
        errors = f" ({self.errors} with 5xx)" if self.errors else ""
        booting = "" if self.was_ready else ", while it was booting"
        lines = [
            f"worker {self.pid} (age {self.age}) {self.how} after {self.lived_s:.1f} s and {requests}{errors}{booting}",
            f"cause: {self.reason}",
        ]
        memory = self._memory()
        if memory:
            lines.append(f"memory: {memory}")
        if self.connections:
            lines.append(f"connections: {self.connections} when it counted them last")
        lines += requests_in_words(self.pid, self.lost) or ["in flight: nothing"]
        if self.stacks:
            by = "the worker itself" if self.stacks_by == "worker" else "faulthandler, innermost call first"
            # Log collectors join the lines that are indented to the one before: none is empty.
            stacks = [line for line in self.stacks.splitlines() if line.strip()]
            lines.append(f"stacks, by {by}:")
            lines += [_INDENT + line for line in stacks[:_MOST_STACK_LINES]]
            if len(stacks) > _MOST_STACK_LINES:
                lines.append(f"{_INDENT}{len(stacks) - _MOST_STACK_LINES} more lines")
        return textwrap.indent("\n".join(lines), _INDENT).strip()

    def _memory(self) -> str:
        parts = []
        if self.rss_bytes:
            parts.append(
                f"{_mebibytes(self.rss_bytes)} resident {self.rss_age_s:.1f} s before it was found dead"
            )
        if self.max_rss_bytes:
            parts.append(f"{_mebibytes(self.max_rss_bytes)} at its most")
        return ", ".join(parts)


def requests_in_words(pid: int, requests: tuple[LostRequest, ...], most: int = _MOST_LINES) -> list[str]:
    """Return a line for each request in the application of the worker ``pid``, ``most`` at most."""
    lines = [
        f"in flight in worker {pid} for {lost.age_s:.1f} s: "
        f'"{escape(lost.request_line)}" from {escape(lost.peer) or "a Unix socket"}, '
        f"request id {escape(lost.request_id) or '-'}"
        for lost in requests[:most]
    ]
    if len(requests) > most:
        lines.append(f"in flight in worker {pid}: {len(requests) - most} more")
    return lines


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
