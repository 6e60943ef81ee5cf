"""Send POSTs on kept TLS connections through reloads: behind nginx, HAProxy and Caddy, and without a proxy.

    python -m tests.soak tls_reload [-k sync,threads,gevent] [--proxy nginx,haproxy,caddy,direct]
                                    [--posts 20000] [--reloads 10] [--preload]

Four workers that speak TLS, a proxy before them that keeps its connections to them (it must repeat no POST when one of
these is closed, so each close without announcement is an error of a client), eight clients with pauses now and then,
and reloads spread over the POSTs. Prints the number of failures; exits 1 when there is any. Needs the programs.
"""

from __future__ import annotations

import shutil
import signal
import ssl
import tempfile
import time
from pathlib import Path

from server import Server
from tlsproxies import Posts, Proxy, issue_certificate, post_through_reloads

from bench.table import Table, need, options_of, say, some_of

PROXIES = ["nginx", "haproxy", "caddy", "direct"]


def measure(table: Table, worker_class: str, kind: str, posts: int, reloads: int, preload: bool) -> bool:
    """Run one combination and print its row; return whether nothing was lost."""
    with tempfile.TemporaryDirectory(prefix="soak-tls-") as name:
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
                say(proxy.complaints)
            server.stop()
        finally:
            if proxy is not None:
                proxy.stop()
            server.close()
        trouble = server.trouble()
    sent = load.done + load.wrong.total()
    table.row(worker_class, kind, sent, reloads, load.wrong.total(), f"{took_s:.0f} s")
    for line in [*map(str, load.wrong.most_common(5)), *trouble[:5]]:
        say(f"  {line}")
    return not (load.wrong or trouble)


def main() -> int:
    """Run the combinations and print the table; return the exit status."""
    options = options_of(__doc__, choose=("classes",), proxy=",".join(PROXIES), posts=20_000, reloads=10, preload=False)
    proxies = some_of(options.proxy, PROXIES)
    need(*(kind for kind in proxies if kind != "direct"))
    table = Table("class", "in front", "POSTs", "reloads", "lost", "took")
    lost = False
    for worker_class in options.classes:
        for kind in proxies:
            how = (options.posts, options.reloads, options.preload)
            lost |= not measure(table, worker_class, kind, *how)
    return int(lost)
