"""Requests per second of the hello application, side by side with gunicorn's sync worker.

    python -m bench.hello [--seconds 4] [--rounds 3]

Each server runs one worker pinned to the first core; ``wrk -t1 -c32`` with a browser's headers is pinned to the
second. The rounds alternate, the medians are compared. Needs wrk, taskset and gunicorn (extra ``test``).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SERVERS = {
    "wsgiserv sync": ["-m", "wsgiserv", "-k", "sync"],
    "wsgiserv threads": ["-m", "wsgiserv", "-k", "threads", "--threads", "8"],
    "wsgiserv gevent": ["-m", "wsgiserv", "-k", "gevent"],
    "gunicorn sync": ["-m", "gunicorn", "-k", "sync"],
    "gunicorn gthread": ["-m", "gunicorn", "-k", "gthread", "--threads", "8", "--keep-alive", "75"],
    "gunicorn gevent": ["-m", "gunicorn", "-k", "gevent", "--keep-alive", "75"],
}

BROWSER = """
wrk.headers["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
wrk.headers["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
wrk.headers["Accept-Language"] = "en-GB,en;q=0.5"
wrk.headers["Accept-Encoding"] = "gzip, deflate, br, zstd"
wrk.headers["Referer"] = "http://127.0.0.1/shop/list?page=2"
wrk.headers["Cookie"] = "session=0123456789abcdef0123456789abcdef; theme=dark"
wrk.headers["Upgrade-Insecure-Requests"] = "1"
wrk.headers["Sec-Fetch-Dest"] = "document"
wrk.headers["Sec-Fetch-Mode"] = "navigate"
"""


def free_port() -> int:
    """Return a port that was free a moment ago; servers here cannot all be handed a socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when the server answers; raise when it has ended or ten seconds have passed."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
                if client.recv(64).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("the server did not come up")


def measure(arguments: list[str], seconds: int, script: Path) -> float:
    """Start a server, load it for ``seconds`` and return its requests per second."""
    port = free_port()
    command = [
        "taskset",
        "-c",
        "0",
        sys.executable,
        *arguments,
        "-w",
        "1",
        "-b",
        f"127.0.0.1:{port}",
        "hello:app",
    ]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        command, cwd=root / "examples", env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_up(port, process)
        load = [
            "taskset",
            "-c",
            "1",
            "wrk",
            "-t1",
            "-c32",
            f"-d{seconds}",
            "-s",
            str(script),
            f"http://127.0.0.1:{port}/",
        ]
        output = subprocess.run(load, capture_output=True, text=True, check=True, timeout=seconds + 20).stdout
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=40)
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"{arguments[1]} failed requests:\n{output}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert found is not None
    return float(found[1])


def main() -> None:
    """Measure and print one Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=4, help="per server and round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results: dict[str, list[float]] = {name: [] for name in SERVERS}
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "browser.lua"
        script.write_text(BROWSER)
        for number in range(options.rounds):
            for name, arguments in SERVERS.items():
                results[name].append(measure(arguments, options.seconds, script))
                print(f"round {number + 1}: {name}: {results[name][-1]:,.0f}/s", file=sys.stderr)
    print("| server | requests/s (median) | against gunicorn, same class |\n|---|---:|---:|")
    medians = {name: statistics.median(rates) for name, rates in results.items()}
    for name, median in medians.items():
        product, kind = name.split()
        peer = medians["gunicorn " + {"threads": "gthread"}.get(kind, kind)]
        print(f"| {name} | {median:,.0f} | {f'{median / peer:.1f} times' if product == 'wsgiserv' else ''} |")


if __name__ == "__main__":
    main()
