"""Send a mixed load through an nginx: there must be no 502 and no 504.

    python -m tests.soak nginx [--seconds 60] [--uwsgi] [--unix] [-k sync,threads,gevent]

For each class: two workers, an nginx before them (kept connections to the upstream, or uwsgi_pass; --unix: over a Unix
socket), six clients with pages, forms, uploads, streams, downloads and errors. Prints the statuses in nginx's access
log. Exits 1 when there is a 502 or 504, a wrong response, or a complaint in nginx's error log.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from mixedload import run_mix
from nginxproxy import PROXY, UWSGI, Nginx
from server import Server

from bench.table import need, options_of


def measure(worker_class: str, seconds: float, uwsgi: bool, unix: bool) -> bool:
    """Run one worker class; return whether all was right."""
    with tempfile.TemporaryDirectory(prefix="soak-nginx-") as name:
        directory = Path(name)
        args = ["-w", "2", *["--protocol", "uwsgi"] * uwsgi, *["-b", "unix:a.sock"] * unix]
        server = Server(directory, "apps:app", args, worker_class=worker_class, bind="none" if unix else "fd")
        try:
            server.wait_for_log("ready")
            upstream = f"unix:{directory}/a.sock" if unix else "{}:{}".format(*server.address)
            nginx = Nginx(shutil.which("nginx") or "nginx", directory, upstream, UWSGI if uwsgi else PROXY)
            try:
                _, wrong = run_mix(nginx.address, seconds)
            finally:
                nginx.stop()
            server.stop()
        finally:
            server.close()
        statuses, errors = nginx.statuses, nginx.errors
    seen = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    bad = statuses[502] + statuses[504]
    print(
        f"{worker_class:8} {seconds:g} s, {statuses.total()} requests ({seen}); 502 and 504: {bad}; "
        f"wrong responses: {len(wrong)}; nginx's complaints: {len(errors)}"
    )
    for line in [*wrong[:5], *errors[:5]]:
        print(f"         {line}")
    return not (bad or wrong or errors)


def main() -> int:
    """Run from the command line; return the exit status."""
    need("nginx")
    options = options_of(__doc__, choose=("classes",), seconds=60.0, uwsgi=False, unix=False)
    fine = [measure(kind, options.seconds, options.uwsgi, options.unix) for kind in options.classes]
    return 0 if all(fine) else 1
