"""Measure the step from Flask's development server to a real one, by ``ab -n 1000 -c 20``.

    python -m bench flask [--requests 1000] [--rounds 5]

ab makes a connection for each request (no keep-alive), 20 at once, to the Flask example. Prints the mean time per
request, as ab calls it (of one of the 20 clients), of Flask's development server (flask run, without debug), of
gunicorn with gevent, and of wsgiserv with each class, all with 4 workers; and by what factor each is quicker than the
first. People quote 72.5 ms and 38.3 ms for this step, a factor of 1.9. The rounds alternate, the medians are compared.
Nothing is pinned: servers and ab share the machine. Exits 1 when the factor of wsgiserv with gevent is not above 1.9,
or not above gunicorn's. Needs ab (apache2-utils), Flask and gunicorn (extra ``test``).
"""

from __future__ import annotations

import re
import subprocess
from statistics import median

from bench.servers import CLASSES, Server, ours
from bench.table import Table, need, options_of, say, turns

QUOTED_FACTOR = 72.5 / 38.3
CLIENTS = 20
FIRST = "Flask's development server"
SERVERS = {
    FIRST: ["-m", "flask", "--app", "flask_app", "run", "--no-debug", "--port", "{port}"],
    "gunicorn gevent": ["-m", "gunicorn", "-k", "gevent", "-w", "4", "-b", "127.0.0.1:{port}", "flask_app:app"],
    **{f"wsgiserv {kind}": ours(kind, 4, "--threads", "8", app="flask_app:app") for kind in CLASSES},
}


def measure(arguments: list[str], requests: int) -> float:
    """Start a server, load it, and return the mean time per request in milliseconds."""
    with Server(arguments) as server:
        command = ["ab", "-q", "-n", str(requests), "-c", str(CLIENTS), f"http://127.0.0.1:{server.port}/"]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    mean = re.search(r"Time per request:\s+([\d.]+) \[ms\] \(mean\)", output)
    if mean is None or not re.search(r"Failed requests:\s+0\n", output) or "Non-2xx" in output:
        raise RuntimeError(f"{arguments[1]} failed requests:\n{output}")
    return float(mean[1])


def main() -> int:
    """Measure and print one table; return the exit status."""
    need("ab")
    options = options_of(__doc__, requests=1000, rounds=5)
    found: dict[str, list[float]] = {name: [] for name in SERVERS}
    for number, name in turns(options.rounds, list(SERVERS)):
        found[name].append(measure(SERVERS[name], options.requests))
        say(f"round {number}: {name}: {found[name][-1]:.2f} ms")
    factors = {name: median(found[FIRST]) / median(times) for name, times in found.items()}
    table = Table("server", "mean time per request (median)", "times as quick")
    for name, times in found.items():
        table.row(name, f"{median(times):.2f} ms", f"{factors[name]:.1f}")
    print(f"People quote 72.5 ms and 38.3 ms: {QUOTED_FACTOR:.1f} times as quick.")
    return 0 if factors["wsgiserv gevent"] > max(QUOTED_FACTOR, factors["gunicorn gevent"]) else 1
