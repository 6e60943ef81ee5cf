"""Measure the memory (PSS) of a master and its workers, the start to the first answer, and the CPU time of both.

    python -m bench footprint [--apps hello,flask,django] [--workers 1,4] [-k sync,threads,gevent] [--rounds 5]
                              [--requests 20] [--reload] [--preload | --trees OLD NEW] [--scaling]

For each application of examples/, class and number of workers: a fresh server, the time from the command to the first
answer (the client waits in the listener's queue), some requests over new connections, then the PSS (proc(5)
smaps_rollup: private pages, and a share of common ones) of master and workers, and the CPU time used so far. The rounds
alternate; medians are shown. The first line of each application is a Python that has only imported it. Other programs
of the same Python share its pages, and so lower the PSS: compare figures of one run.

--preload compares without and with preload_app, --trees two checkouts. The application ``site`` is Django with the
usual imports of a site beside it (requests, Jinja2, cryptography, Pydantic, forms, the admin), as far as installed.
--reload adds the seconds of a reload. --scaling measures in place of all that the requests per second of two workers
against one, with an application of 5 ms CPU time on unpinned cores; it exits 1 below 1.9 times. wrk shares these cores:
its part, which is shown, is small.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import time
from itertools import product
from statistics import median

from bench.load import wrk
from bench.servers import READY, RELOADED, Server, Tree, ask, memory_of, ours, workers_of
from bench.table import Table, need, options_of, turns

LEAST_TIMES = 1.9
APPS = {"hello": "hello:app", "flask": "flask_app:app", "django": "django_app:application", "site": "site_app:app"}
TARGETS = {"site": ("/", "/items/7?a=b", "/cookies/set", "/stream")}
SITE = """\
import importlib
from django_app import application as app

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
Figures = dict[str, float]


def start(kind: str, workers: int, name: str, options: argparse.Namespace, tree: Tree, *more: str) -> Figures:
    """Start a server, ask it, and return its figures."""
    arguments = ours(kind, workers, "--no-control-socket", *more, app=APPS[name])
    with Server(arguments, tree=tree, files={"site_app.py": SITE}) as server:
        ready = server.wait_for_log(READY)
        targets = TARGETS.get(name, ("/",))
        for number in range(options.requests):
            ask(server.address, targets[number % len(targets)])
        used = server.cpu_time()
        found = {
            "PSS MiB": server.memory().pss_kib / 1024,
            "of workers": memory_of(workers_of(server.master)).pss_kib / 1024,
            "first answer ms": server.first_answer_s * 1000,
            "ready ms": float(ready[1]) * 1000,
            "CPU ms": (used.user_s + used.system_s) * 1000,
        }
        if options.reload:
            server.process.send_signal(signal.SIGHUP)
            found["reload ms"] = float(server.wait_for_log(RELOADED)[1]) * 1000
    return found


def imported(name: str, tree: Tree) -> tuple[float, float]:
    """Return the milliseconds and the PSS in MiB of a Python that imports an application and does nothing else."""
    code = SITE if name == "site" else f"import {APPS[name].partition(':')[0]}"
    begun = time.perf_counter()
    with subprocess.Popen(
        [tree.python, "-c", f"{code}\nimport sys\nprint(flush=True)\nsys.stdin.read()"],
        cwd=tree.path / "examples",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as python:
        assert python.stdout is not None
        python.stdout.readline()
        return (time.perf_counter() - begun) * 1000, memory_of([python.pid]).pss_kib / 1024


def scaling(options: argparse.Namespace) -> int:
    """Print requests per second with two workers and with one; return the exit status."""
    need("wrk")
    table = Table("class", "one worker", "two workers", "times", "client")
    short = False
    for kind in options.classes:
        rates: dict[int, list[float]] = {1: [], 2: []}
        busy = []
        for _, workers in turns(options.rounds, (1, 2)):
            arguments = ours(kind, workers, app="benchapps:compute")
            with Server(arguments, env={"BENCH_TURNS": "400000"}) as server:
                load = wrk(f"http://127.0.0.1:{server.port}/", 32, options.seconds, core=None)
            rates[workers].append(load.rate)
            busy.append(load.client_busy)
        one, two = median(rates[1]), median(rates[2])
        short |= two / one < LEAST_TIMES
        table.row(kind, f"{one:,.0f}/s", f"{two:,.0f}/s", two / one, f"{median(busy):.1%}")
    return int(short)


def main() -> int:
    """Measure and print; return the exit status."""
    options = options_of(
        __doc__,
        choose=("classes", "trees"),
        apps="hello,flask,django",
        workers="1,4",
        rounds=5,
        requests=20,
        seconds=3,
        reload=False,
        preload=False,
        scaling=False,
    )
    if options.scaling:
        return scaling(options)
    variants: dict[str, tuple[Tree, list[str]]] = {"": (Tree(), [])}
    if options.preload:
        variants = {"without": (Tree(), []), "preload": (Tree(), ["--preload"])}
    elif options.trees:
        old, new = options.trees
        variants = {"before": (old, []), "after": (new, [])}
        print(f"before: {old.describe()}; after: {new.describe()}\n")
    alone = {name: imported(name, Tree()) for name in options.apps.split(",")}
    for name, (took_ms, mib) in alone.items():
        print(f"python -c 'import {name}': {mib:.1f} MiB, {took_ms:.0f} ms")
    table = None
    for name, kind, workers in product(alone, options.classes, map(int, options.workers.split(","))):
        found: dict[str, list[Figures]] = {label: [] for label in variants}
        for _, label in turns(options.rounds, list(variants)):
            tree, more = variants[label]
            found[label].append(start(kind, workers, name, options, tree, *more))
        cells: list[object] = [f"{name}, {kind}, {workers}"]
        heads = ["application, class, workers"]
        for figure in found[label][0]:
            values = [median(each[figure] for each in rounds) for rounds in found.values()]
            heads += [f"{figure} {label}".strip() for label in variants] + ["ratio"] * (len(values) - 1)
            cells += [f"{value:,.1f}" for value in values]
            cells += [f"**{value / (values[0] or 1):.2f}**" for value in values[1:]]
        table = table or Table(*heads)
        table.row(*cells)
    return 0
