"""The step that people take: from Flask's own development server to a real one, by ``ab -n 1000 -c 20``.

    python -m bench.flask [--requests 1000] [--rounds 5]

ab makes a connection for each request (no keep-alive), 20 at once, to the Flask example. Prints the mean time per
request, as ab calls it (of one of the 20 clients), of Flask's development server (``flask run``, without debug), of
gunicorn with gevent, and of wsgiserv with each class, all with 4 workers; and by what factor each is quicker than
the first. The figures that people quote for this step are 72.5 ms and 38.3 ms, a factor of 1.9. The rounds
alternate, the medians are compared. Nothing is pinned: servers and ab share the machine. Exits 1 when the factor of
wsgiserv with gevent is not above 1.9, or not above gunicorn's. Needs ab (apache2-utils), Flask and gunicorn (extra
``test``).
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys

from bench.peerserver import ROOT, PeerServer

QUOTED_FACTOR = 72.5 / 38.3
CLIENTS = 20
DEVELOPMENT = "Flask's development server"

_FOUR = ["-w", "4", "-b", "127.0.0.1:{port}", "flask_app:app"]
SERVERS = {
    DEVELOPMENT: ["flask", "--app", "flask_app", "run", "--no-debug", "--port", "{port}"],
    "gunicorn gevent": ["gunicorn", "-k", "gevent", *_FOUR],
    "wsgiserv gevent": ["wsgiserv", "-k", "gevent", *_FOUR],
    "wsgiserv threads": ["wsgiserv", "-k", "threads", "--threads", "8", *_FOUR],
    "wsgiserv sync": ["wsgiserv", "-k", "sync", *_FOUR],
}


def measure(arguments: list[str], requests: int) -> float:
    """Start a server, load it, and return the mean time per request in milliseconds."""
    with PeerServer(["-m", *arguments], core=None, directory=ROOT / "examples") as server:
        command = ["ab", "-q", "-n", str(requests), "-c", str(CLIENTS), f"http://127.0.0.1:{server.port}/"]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    failed = re.search(r"Failed requests:\s+(\d+)", output)
    mean = re.search(r"Time per request:\s+([\d.]+) \[ms\] \(mean\)", output)
    assert failed is not None, output
    assert mean is not None, output
    if failed[1] != "0" or "Non-2xx" in output:
        raise RuntimeError(f"{arguments[0]} failed requests:\n{output}")
    return float(mean[1])


def main() -> int:
    """Measure and print one Markdown table; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1000, help="per server and round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in SERVERS}
    for number in range(options.rounds):
        for name, arguments in SERVERS.items():
            found[name].append(measure(arguments, options.requests))
            print(f"round {number + 1}: {name}: {found[name][-1]:.2f} ms", file=sys.stderr)
    medians = {name: statistics.median(times) for name, times in found.items()}
    factors = {name: medians[DEVELOPMENT] / median for name, median in medians.items()}
    print(f"ab -n {options.requests} -c {CLIENTS}, no keep-alive, the Flask example")
    print("| server | mean time per request (median) | times as quick |\n|---|---:|---:|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} ms | {factors[name]:.1f} |")
    print(f"People quote 72.5 ms and 38.3 ms: {QUOTED_FACTOR:.1f} times as quick.")
    ours = factors["wsgiserv gevent"]
    return 0 if ours > max(QUOTED_FACTOR, factors["gunicorn gevent"]) else 1


if __name__ == "__main__":
    sys.exit(main())
