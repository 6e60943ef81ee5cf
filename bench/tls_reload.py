"""Is a POST on a kept TLS connection lost over reloads? Behind nginx, HAProxy and Caddy, and without a proxy.

    python -m bench tls_reload [--class sync,threads,gevent] [--proxy nginx,haproxy,caddy,direct]
                               [--posts 20000] [--reloads 10] [--preload]

Four workers that speak TLS, a proxy before them that keeps its connections to them (it must repeat no POST when one
of these is closed, so each that was closed without a word is an error of a client), eight clients with pauses now and
then, and reloads spread over the POSTs. Prints how many have failed; ends with status 1 when any has. All talk is over
the loopback. It needs the programs, and the modules of tests/support.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import ssl
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from server import Server  # noqa: E402
from tlsproxies import Posts, Proxy, issue_certificate, post_through_reloads  # noqa: E402

PROXIES = ("nginx", "haproxy", "caddy")


def measure(worker_class: str, kind: str, posts: int, reloads: int, preload: bool) -> bool:
    """Run one combination and print its row; True when nothing was lost."""
    with tempfile.TemporaryDirectory(prefix="bench-tls-") as name:
        directory = Path(name)
        ca = issue_certificate(directory)
        args = ["-w", "4", "--certfile", "server.pem", "--keyfile", "server.key"]
        args += ["--preload"] if preload else []
        server = Server(directory, "apps:app", args, worker_class=worker_class)
        proxy: Proxy | None = None
        try:
            server.wait_for_log("ready: ")
            context = None
            if kind == "direct":
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                ca.configure_trust(context)
            else:
                proxy = Proxy(kind, shutil.which(kind) or kind, directory, server.address)

            def reload() -> None:
                seen = len(server.log.lines)
                server.send_signal(signal.SIGHUP)
                server.wait_for_log("reloaded", after=seen)

            begun = time.monotonic()
            load = Posts(proxy.address if proxy is not None else server.address, posts, context)
            post_through_reloads(load, posts, reloads, reload)
            took_s = time.monotonic() - begun
            if load.wrong and proxy is not None:
                print(proxy.complaints, file=sys.stderr)
            server.stop()
        finally:
            if proxy is not None:
                proxy.stop()
            server.close()
        trouble = server.trouble()
    print(
        f"| {worker_class} | {kind} | {load.done + load.wrong.total():,} | {reloads} | {load.wrong.total()} | "
        f"{took_s:.0f} s |",
        flush=True,
    )
    for line in [*map(str, load.wrong.most_common(5)), *trouble[:5]]:
        print(f"  {line}", file=sys.stderr)
    return not (load.wrong or trouble)


def main() -> int:
    """Run the combinations and print the table; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench tls_reload", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--class", dest="classes", default="sync,threads,gevent")
    parser.add_argument("--proxy", dest="proxies", default=",".join((*PROXIES, "direct")))
    parser.add_argument("--posts", type=int, default=20_000)
    parser.add_argument("--reloads", type=int, default=10)
    parser.add_argument("--preload", action="store_true", help="with preload_app")
    given = parser.parse_args()
    proxies = given.proxies.split(",")
    if unknown := set(proxies).difference((*PROXIES, "direct")):
        parser.error(f"no such proxy: {', '.join(unknown)}; there are {', '.join((*PROXIES, 'direct'))}")
    missing = [kind for kind in proxies if kind != "direct" and shutil.which(kind) is None]
    if missing:
        print(f"not installed (Debian: apt-get install {' '.join(missing)})", file=sys.stderr)
        return 2
    print("| class | in front | POSTs | reloads | lost | took |\n|---|---|---:|---:|---:|---:|")
    fine = [
        measure(worker_class, kind, given.posts, given.reloads, given.preload)
        for worker_class in given.classes.split(",")
        for kind in proxies
    ]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
