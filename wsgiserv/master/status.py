"""The figures of the server, for ``wsgiservctl status`` and the service manager."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import gmtime, strftime
from typing import Any, Literal, NamedTuple, TypeAlias

from wsgiserv import __version__
from wsgiserv.master.crash_report import in_json
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.process import rss_of
from wsgiserv.scoreboard import SlotFigures
from wsgiserv.wording import counted

ServerState: TypeAlias = Literal["starting", "running", "reloading", "upgrading", "draining", "stopping"]


class LastReload(NamedTuple):
    """The outcome of the last reload.

    Attributes:
        ok: True when the new workers serve.
        reason: why it failed, or a summary.
        at: when it ended, ``time.monotonic()`` seconds.
    """

    ok: bool
    reason: str
    at: float


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """The facts about the master.

    Attributes:
        pid: its process id.
        started_at: the time of its start, ``time.monotonic()`` seconds.
        state: its state.
        application: the name of the application.
        bind: the addresses of its listeners, as text.
        generation: the number of the generation in force.
        wanted: the number of wanted workers.
        last_reload: None before the first.
        gone: the sums of reaped workers.
        lost_lines: the number of error log lines that the master itself lost.
    """

    pid: int
    started_at: float
    state: ServerState
    application: str
    bind: Sequence[str]
    generation: int
    wanted: int
    last_reload: LastReload | None = None
    gone: SlotFigures
    lost_lines: int = 0


def status_of(
    server: ServerFacts, workers: Iterable[WorkerHandle], now: float, wall: float, memory: Callable[[int], int] = rss_of
) -> dict[str, Any]:
    """Return the figures, fit for JSON.

    Args:
        server: the master's own.
        workers: the workers before their reaping.
        now, wall: ``time.monotonic()`` and ``time.time()`` seconds.
        memory: returns the memory of a process in bytes.
    """
    # By age and not by pid, which starts again from a low number.
    handles = sorted(workers, key=lambda worker: worker.age)
    rows = [_worker(worker, now, memory) for worker in handles]
    last, gone = server.last_reload, server.gone
    ended = last and {**last._asdict(), "at": _iso(wall - (now - last.at)), "age_s": round(now - last.at, 1)}

    def total(name: str) -> int:
        return sum(row[name] for row in rows)

    return {
        "server": {
            # Keys stay: monitors read them (docs/control.md).
            "pid": server.pid,
            "version": __version__,
            "python": ".".join(map(str, sys.version_info[:3])),
            "state": server.state,
            # Derived from the present clock: one that was wrong at the start has been set since.
            "started": _iso(wall - (now - server.started_at)),
            "uptime_s": round(now - server.started_at, 1),
            "application": server.application,
            "bind": list(server.bind),
            "generation": server.generation,
            "workers": {
                "wanted": server.wanted,
                "serving": sum(worker.serving for worker in handles),
                "booting": sum(worker.booting for worker in handles),
                "retiring": sum(worker.leaving for worker in handles),
            },
            "last_reload": ended,
            "requests": gone.requests + total("requests"),
            "errors": gone.errors + total("errors"),
            # The lines that waited in a worker's memory for the log have ended with it.
            "lost_log_lines": (server.lost_lines + gone.lost_lines + gone.waiting_lines + total("lost_log_lines")),
            "connections": total("connections"),
            "detached": total("detached"),
            "in_flight": sum(len(row["in_flight"]) for row in rows),
        },
        "workers": rows,
    }


def status_line(server: Mapping[str, Any]) -> str:
    """Return the server's figures of `status_of` in one line, for ``STATUS=`` of sd_notify(3)."""
    workers, last = server["workers"], server["last_reload"]
    parts = [
        server["state"],
        f"{workers['serving']} of {counted(workers['wanted'], 'worker', 'serves', 'serve')}",
        f"{counted(server['requests'], 'request')}, {server['errors']} with errors",
        counted(server["connections"], "connection"),
    ]
    if last and not last["ok"]:
        # systemctl shows one line: the traceback is in the log.
        first = last["reason"].partition("\n")[0]
        parts.append(f"the last reload failed: {first}")
    return "; ".join(parts)


def _worker(worker: WorkerHandle, now: float, memory: Callable[[int], int]) -> dict[str, Any]:
    state, since = _state(worker)
    figures = worker.figures()
    return {
        "pid": worker.pid,
        "age": worker.age,
        "generation": worker.generation,
        "state": state,
        "since_s": round(now - since, 1),
        "lifetime_s": round(now - worker.spawned_at, 1),
        "recycle_reason": worker.recycle_reason,
        "requests": figures.requests,
        "errors": figures.errors,
        "lost_log_lines": figures.lost_lines,
        "connections": figures.connections,
        "detached": worker.detached,
        "in_flight": in_json(worker.in_flight(now)),
        "rss_bytes": memory(worker.pid),
    }


def _state(worker: WorkerHandle) -> tuple[str, float]:
    """Return the state of a worker, and its begin (``time.monotonic()`` seconds)."""
    # The latest stage first: a worker that is killed was told to leave before, and had been ready before that.
    told = [at for at in (worker.abort_at, worker.kill_at) if at is not None]
    if told:
        return "killed", min(told)
    if worker.failed is not None:
        return "failed", worker.failed_at
    left = [at for at in (worker.retiring_at, worker.term_at, worker.quit_at) if at is not None]
    if left:
        return "retiring", min(left)
    if worker.ready_at is None:
        return "booting", worker.spawned_at
    if worker.recycle_at is not None:
        return "recycling", worker.recycle_at
    return "serving", worker.ready_at


def _iso(wall: float) -> str:
    # Not datetime: its import costs the master time and memory.
    return strftime("%Y-%m-%dT%H:%M:%S+00:00", gmtime(wall))
