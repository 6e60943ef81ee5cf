"""What preload_app saves: the memory of 4 workers of a Django application, and how long they take to start.

    python -m bench.preload [-w 4] [--requests 200] [-k sync -k threads -k gevent]

The application is examples/django_app.py with what a site usually imports beside it (requests, Jinja2, cryptography,
Pydantic, forms, the admin's parts of Django), as far as it is installed. Each server gets the same requests over new
connections; then the PSS (/proc/PID/smaps_rollup: private pages, and a share of
those that are common) of all its processes is added up. Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LONGEST_S = 60.0

SITE = """\
import importlib
from django_app import application

for name in (
    "requests", "jinja2", "cryptography.x509", "cryptography.fernet", "pydantic",
    "django.contrib.admin.widgets", "django.contrib.sessions.backends.db", "django.contrib.staticfiles.finders",
    "django.core.mail", "django.core.paginator", "django.db.models", "django.db.models.sql.compiler", "django.forms",
    "django.template.defaulttags", "django.views.generic",
):
    try:
        importlib.import_module(name)
    except Exception:  # not installed, or wants a setting
        pass
"""


class Figures(NamedTuple):
    """What was measured of one server."""

    workers_kib: int
    all_kib: int
    ready_s: float
    again_s: float
    cpu_s: float


def pss_kib(pid: int) -> int:
    """Return the proportional set size of a process in KiB."""
    found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def children(pid: int) -> dict[int, str]:
    """Return the children of a process with their titles."""
    pids = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return {child: Path(f"/proc/{child}/cmdline").read_bytes().rstrip(b"\0").decode() for child in pids}


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(log: Path, pattern: str) -> float:
    """Wait for a line in the log; return the number in it."""
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        if found := re.search(pattern, log.read_text()):
            return float(found[1])
        time.sleep(0.02)
    raise RuntimeError(f"no line like {pattern!r}:\n{log.read_text()}")


def ask(port: int, target: str) -> None:
    """Make one request over a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while data := client.recv(65536):
            answer += data
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"a request failed: {answer[:200]!r}")


def measure(worker_class: str, workers: int, requests: int, *extra: str) -> Figures:
    """Start a server, ask it, and return its figures."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "site_app.py").write_text(SITE)
        log = directory / "log"
        log.touch()
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            fd, port = listener.fileno(), listener.getsockname()[1]
            command = [
                sys.executable,
                "-m",
                "wsgiserv",
                "-k",
                worker_class,
                "-w",
                str(workers),
                "-b",
                f"fd://{fd}",
            ]
            command += ["--log-file", str(log), "--no-control-socket", *extra, "site_app:application"]
            path = os.pathsep.join([str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")])
            environ = {**os.environ, "PYTHONPATH": path}
            process = subprocess.Popen(command, cwd=directory, env=environ, pass_fds=(fd,))
        try:
            ready_s = wait_for(log, r"ready: \d+ workers? in ([\d.]+) s")
            for number in range(requests):
                ask(port, ("/", f"/items/{number}?a=b", "/cookies/set", "/stream")[number % 4])
            family = children(process.pid)
            of_workers = [pid for pid, title in family.items() if ": worker [" in title]
            workers_kib = sum(map(pss_kib, of_workers))
            all_kib = sum(map(pss_kib, [process.pid, *family]))
            used_s = sum(map(cpu_s, [process.pid, *family]))
            process.send_signal(signal.SIGHUP)
            again_s = wait_for(log, r"reloaded: \d+ workers? in ([\d.]+) s")
        finally:
            process.terminate()
            process.wait(30)
    return Figures(workers_kib, all_kib, ready_s, again_s, used_s)


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-w", "--workers", type=int, default=4)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("-k", dest="classes", action="append", choices=["sync", "threads", "gevent"])
    given = parser.parse_args()
    print(f"{given.workers} workers, {given.requests} requests; PSS in MiB, times in s")
    print(f"{'class':8} {'':8} {'workers':>8} {'all':>8} {'ready':>7} {'HUP':>7} {'CPU':>7}")
    for name in given.classes or ["sync", "threads", "gevent"]:
        found = {}
        for label, extra in (("without", ()), ("preload", ("--preload",))):
            figures = found[label] = measure(name, given.workers, given.requests, *extra)
            print(
                f"{name:8} {label:8} {figures.workers_kib / 1024:8.1f} {figures.all_kib / 1024:8.1f} "
                f"{figures.ready_s:7.2f} {figures.again_s:7.2f} {figures.cpu_s:7.2f}",
                flush=True,
            )
        saved = 1 - found["preload"].all_kib / found["without"].all_kib
        print(f"{name:8} saved    {'':8} {saved:8.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
