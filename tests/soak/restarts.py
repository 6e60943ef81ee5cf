"""Count what clients notice of reloads, upgrades, recycling, scaling, broken deploys, restarts and kill -9.

    python -m tests.soak restarts [-k sync,threads,gevent] [--scenario hup,upgrade,...] [--quick]

Four workers, and the clients of tests/soak/underload.py all at once. Counts the requests, the failed ones, and the
connections that were closed without ``Connection: close`` before. Exits 1 when a client has noticed anything.

``reuse_port`` and ``unix_pair`` have two servers behind an nginx, which must be installed, and restart them by turns.
They share a TCP port (the kernel deals the connections out, and nginx sees one server), or have a Unix socket each
(nginx asks the other when one does not answer). ``kill9`` is a run of its own (python -m tests.soak kill9).
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.servers import free_port
from bench.table import Table, need, options_of, say, some_of
from tests.soak import kill9
from tests.soak.underload import APPLICATION, Clients, SiteServer


def hup(server: SiteServer, quick: bool) -> None:
    """Reload 20 times."""
    for _ in range(4 if quick else 20):
        server.signal(signal.SIGHUP, r"reloaded: 4 workers")
        time.sleep(0.3)


def upgrade(server: SiteServer, quick: bool) -> None:
    """Upgrade 10 times."""
    for _ in range(2 if quick else 10):
        server.signal(signal.SIGUSR2, rf"\[{server.master}\] \[INFO\] stopped")
        time.sleep(0.3)


def recycle(server: SiteServer, quick: bool) -> None:
    """Wait while max_requests = 500 replaces workers."""
    time.sleep(3 if quick else 15)


def scale(server: SiteServer, quick: bool) -> None:
    """Add two workers and take them away, 10 times."""
    steps = {5: signal.SIGTTIN, 6: signal.SIGTTIN}, {5: signal.SIGTTOU, 4: signal.SIGTTOU}
    for _ in range(2 if quick else 10):
        for wanted, number in (step for each in steps for step in each.items()):
            server.signal(number)
            end = time.monotonic() + 20
            while len(server.workers()) != wanted:
                if time.monotonic() > end:
                    raise TimeoutError(f"{len(server.workers())} workers instead of {wanted}")
                time.sleep(0.02)
        time.sleep(0.1)


def deploy(server: SiteServer, quick: bool) -> None:
    """Deploy an application that is broken in three ways, then a broken configuration, then mend both."""
    for broken, pattern in (
        ("def app(:\n", r"SyntaxError"),
        ("raise RuntimeError('on purpose')\n", r"RuntimeError: on purpose"),
        ("import time\ntime.sleep(600)\n", r"boot_timeout"),
    ):
        server.site.write_text(broken)
        mark = server.mark()
        server.signal(signal.SIGHUP, FAILED)
        server.wait_for_log(pattern, mark)
    server.site.write_text(APPLICATION)
    server.configuration.write_text("workers = 'lots'\n")
    server.signal(signal.SIGHUP, REFUSED)
    server.configuration.write_text("")
    server.signal(signal.SIGHUP, r"reloaded: 4 workers")


FAILED = r"(?i)reload (has )?failed"
REFUSED = r"reload failed; still running"
SCENARIOS: dict[str, tuple[Callable[[SiteServer, bool], None], tuple[str, ...]]] = {
    "hup": (hup, ()),
    "upgrade": (upgrade, ()),
    "max_requests": (recycle, ("--max-requests", "500")),
    "scale": (scale, ()),
    "deploy": (deploy, ("--boot-timeout", "2")),
}
PAIRS = ("reuse_port", "unix_pair")


def run(worker_class: str, name: str, quick: bool) -> Clients:
    """Run a scenario with one server; return its clients."""
    scenario, options = SCENARIOS[name]
    with SiteServer(worker_class, *options) as server, Clients(server.port) as clients:
        time.sleep(0.5)
        scenario(server, quick)
        time.sleep(0.5)
    return clients


def run_pair(worker_class: str, name: str, quick: bool) -> Clients:
    """Restart two servers behind an nginx by turns; return the clients."""
    need("nginx")
    from nginxproxy import Nginx

    directory = Path(tempfile.mkdtemp(prefix="wsgiserv-pair-"))
    unix = name == "unix_pair"
    binds = [f"unix:{directory}/{each}.sock" for each in "ab"] if unix else [f"127.0.0.1:{free_port()}"] * 2
    with ExitStack() as stack:
        options = () if unix else ("--reuse-port",)
        servers = [stack.enter_context(SiteServer(worker_class, *options, bind=bind)) for bind in binds]
        # max_fails=0: nginx would leave a server alone for 10 s after one failure, and be without any when the other
        # is restarted sooner than that.
        upstreams = " max_fails=0; server ".join(dict.fromkeys(binds)) + " max_fails=0"
        nginx = Nginx(shutil.which("nginx") or "nginx", directory, upstreams)
        stack.callback(nginx.stop)
        with Clients(nginx.address[1]) as clients:
            time.sleep(0.5)
            for number in range(2 if quick else 5):
                servers[number % 2].restart()
                time.sleep(0.5)
    statuses = (line.rsplit(" ", 3)[0] for line in (directory / "nginx-access.log").read_text().splitlines())
    odd = {status: count for status, count in Counter(statuses).items() if status != "200 200"}
    say(f"  nginx, status and that of its upstream: {odd}; {len(nginx.errors)} complaints {nginx.errors[:3]}")
    shutil.rmtree(directory)
    return clients


def main() -> int:
    """Run the scenarios and print the tables; return the exit status."""
    known = [*SCENARIOS, *PAIRS, "kill9"]
    options = options_of(__doc__, choose=("classes",), scenario=",".join(known), quick=False)
    scenarios = some_of(options.scenario, known)
    need("wrk", "ab")
    noticed = False
    if set(scenarios) != {"kill9"}:
        table = Table("class", "scenario", "requests", "failed", "closed unannounced", "slowest", "took")
    for worker_class in options.classes:
        for name in filter("kill9".__ne__, scenarios):
            begun = time.monotonic()
            clients = (run_pair if name in PAIRS else run)(worker_class, name, options.quick)
            times = f"{clients.slowest_s * 1000:.0f} ms", f"{time.monotonic() - begun:.0f} s"
            table.row(worker_class, name, clients.asked, clients.failures, clients.unannounced, *times)
            if clients.failures or clients.unannounced:
                noticed = True
                say(f"  {clients.failed}")
    if "kill9" in scenarios:
        print()
        noticed |= kill9.run(options.classes, 10.0 if options.quick else 60.0)
    return int(noticed)
