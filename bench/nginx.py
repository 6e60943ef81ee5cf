"""What an nginx in front sees under a mixed load: there must be no 502 and no 504.

    python -m bench.nginx [--seconds 60] [--uwsgi] [--unix] [-k sync -k threads -k gevent]

For each worker class: two workers, an nginx before them (kept connections to the upstream, or uwsgi_pass), six
clients with pages, forms, uploads, streams, downloads and errors. Prints how often nginx's access log has which
status. Exits 1 when there is a 502 or 504, a wrong response, or a complaint in nginx's error log. It needs
nginx, and the modules of tests/support.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from mixedload import run_mix  # noqa: E402
from nginxproxy import PROXY, UWSGI, Nginx  # noqa: E402
from server import Server  # noqa: E402


def measure(program: str, worker_class: str, seconds: float, uwsgi: bool, unix: bool) -> bool:
    """Run one worker class; True when nothing was wrong."""
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as name:
        directory = Path(name)
        args = [
            "-w",
            "2",
            *(["--protocol", "uwsgi"] if uwsgi else []),
            *(["-b", "unix:a.sock"] if unix else []),
        ]
        server = Server(directory, "apps:app", args, worker_class=worker_class, bind="none" if unix else "fd")
        try:
            server.wait_for_log("ready")
            upstream = f"unix:{directory}/a.sock" if unix else "{}:{}".format(*server.address)
            nginx = Nginx(program, directory, upstream, UWSGI if uwsgi else PROXY)
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
        f"wrong responses: {len(wrong)}; nginx's complaints: {len(errors)}",
        flush=True,
    )
    for line in [*wrong[:5], *errors[:5]]:
        print(f"         {line}", flush=True)
    return not (bad or wrong or errors)


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.nginx", description="Mixed load through nginx.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--uwsgi", action="store_true", help="uwsgi_pass in place of proxy_pass")
    parser.add_argument("--unix", action="store_true", help="a Unix socket between nginx and the workers")
    parser.add_argument("-k", dest="classes", action="append", metavar="CLASS")
    options = parser.parse_args()
    program = shutil.which("nginx")
    if program is None:
        print("nginx is not installed (Debian: apt-get install nginx)", file=sys.stderr)
        return 2
    fine = [
        measure(program, kind, options.seconds, options.uwsgi, options.unix)
        for kind in options.classes or ["sync", "threads", "gevent"]
    ]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
