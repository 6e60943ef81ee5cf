"""Formats the server's status (`wsgiserv.master.status`) as a page for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from wsgiserv.logs.escape import escape
from wsgiserv.wording import counted

_HEADS = ("PID", "AGE", "GEN", "STATE", "SINCE", "REQUESTS", "ERRORS", "CONNECTIONS", "DETACHED", "IN FLIGHT", "MEMORY")
_MOST_REQUESTS = 5


def report(status: Mapping[str, Any]) -> str:
    """Return the page. Clients' text is made safe to print."""
    server, workers = status["server"], status["workers"]
    counts = server["workers"]
    first = (
        f"wsgiserv {server['version']} (Python {server['python']}), pid {server['pid']}: {server['state']}, "
        f"up {_duration(server['uptime_s'])}"
    )
    fleet = (
        f"{counts['serving']} of {counts['wanted']} serve, {counts['booting']} booting, "
        f"{counts['retiring']} retiring; generation {server['generation']}"
    )
    requests = (
        f"{server['requests']} answered, {server['errors']} of them with 5xx; "
        f"{server['in_flight']} in flight, {counted(server['connections'], 'connection')}"
        + (f" ({server['detached']} detached)" if server.get("detached") else "")
    )
    lines = [
        first,
        f"  application  {escape(server['application'])}",
        f"  listening    {escape(', '.join(server['bind']))}",
        f"  workers      {fleet}",
        f"  requests     {requests}",
        # An older server, which an upgrade of the package leaves running, may lack keys.
        *_lost_lines(server.get("lost_log_lines", 0)),
        *_last_reload(server.get("last_reload")),
    ]
    if workers:
        lines += ["", *_table(workers)]
    return "\n".join(lines)


def server_line(pid: int) -> str:
    """Return a process's title (setproctitle), with the name of the application; empty if it cannot be read."""
    # ps(1) shows the same: the title names the application, which tells several servers apart.
    try:
        title = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""
    return escape(title.replace("\0", " ").strip())[:120]


def _lost_lines(count: int) -> list[str]:
    # Only when there are any: in a server that is well the line would be noise.
    lost = counted(count, "line", "is", "are")
    return [f"  logs         {lost} lost: a file, pipe or terminal did not take them"] if count else []


def _last_reload(last: Mapping[str, Any] | None) -> list[str]:
    if not last:
        return []
    # A reload fails with a traceback, or with several faults: a line each.
    first, *rest = str(last["reason"]).rstrip().splitlines() or [""]
    outcome = "done" if last["ok"] else "FAILED"
    colon = ": " if first else ""
    return [
        f"  last reload  {outcome} {_duration(last['age_s'])} ago{colon}{escape(first)}",
        *(f"               {escape(line)}" for line in rest),
    ]


def _row(worker: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a worker, in the order of `_HEADS`."""
    return (
        str(worker["pid"]),
        str(worker["age"]),
        str(worker["generation"]),
        worker["state"],
        _duration(worker["since_s"]),
        str(worker["requests"]),
        str(worker["errors"]),
        str(worker["connections"]),
        str(worker.get("detached", 0)),
        str(len(worker["in_flight"])),
        # 0 where there is no /proc.
        f"{worker['rss_bytes'] / 2**20:.0f} MiB" if worker["rss_bytes"] else "?",
    )


def _table(workers: Sequence[Mapping[str, Any]]) -> list[str]:
    # Its column only where there is any: most applications have no WebSockets.
    shows = [head != "DETACHED" or any(worker.get("detached") for worker in workers) for head in _HEADS]
    heads = tuple(compress(_HEADS, shows))
    rows = [tuple(compress(row, shows)) for row in map(_row, workers)]
    # Widths of what there is: a table of fixed columns breaks at a million requests.
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        parts = (
            f"{cell:<{width}}" if head == "STATE" else f"{cell:>{width}}"
            for head, cell, width in zip(heads, cells, widths, strict=True)
        )
        return "  " + "  ".join(parts).rstrip()

    lines = [line(heads)]
    for worker, row in zip(workers, rows, strict=True):
        lines.append(line(row))
        if worker.get("recycle_reason"):
            lines.append(f"    to be replaced: {escape(worker['recycle_reason'])}")
        for request in worker["in_flight"][:_MOST_REQUESTS]:
            peer = escape(request["peer"]) or "a Unix socket"
            lines.append(
                f"    {_duration(request['age_s'])}  {escape(request['request_line'])}  from {peer}"
                + (f"  id {escape(request['id'])}" if request["id"] else "")
                + ("  detached" if request.get("detached") else "")
            )
        if len(worker["in_flight"]) > _MOST_REQUESTS:
            lines.append(f"    and {len(worker['in_flight']) - _MOST_REQUESTS} more (status --json has all)")
    return lines


def _duration(seconds: float) -> str:
    """Return ``0.12s``, ``45s``, ``3m20s``, ``2h05m`` or ``4d03h``."""
    # Two units: a third says nothing that an operator acts on.
    if seconds < 10:
        return f"{seconds:.2f}s"
    whole = int(seconds)
    if whole < 100:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24:02}h"
