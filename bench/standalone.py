"""Starts a server that is a library: ``python -m bench.standalone NAME PORT THREADS module:app``.

One process, no log. Servers that keep few connections by default are told to keep more.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

HOST = "127.0.0.1"
# Of connections, and of those in the backlog.
MANY = 2048


def gevent(port: int, threads: int, app: Any) -> None:
    """Start gevent.pywsgi, a greenlet per connection."""
    listener = socket.create_server((HOST, port), backlog=MANY)
    # It sends head and body in two pieces: by itself each answer on a kept connection would wait 40 ms for the
    # client's delayed acknowledgement (Nagle), and nothing else would be seen. Inherited by accept(2), see tcp(7).
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    import_module("gevent.pywsgi").WSGIServer(listener, app, log=None).serve_forever()


def waitress(port: int, threads: int, app: Any) -> None:
    """Start waitress: an asyncore loop and a pool of threads."""
    serve = import_module("waitress").serve
    serve(app, host=HOST, port=port, threads=threads, connection_limit=MANY, backlog=MANY)


def cheroot(port: int, threads: int, app: Any) -> None:
    """Start cheroot, CherryPy's server: a selector and a pool of threads."""
    server = import_module("cheroot.wsgi").Server((HOST, port), app, numthreads=threads, request_queue_size=MANY)
    server.keep_alive_conn_limit = MANY
    server.start()


def werkzeug(port: int, threads: int, app: Any) -> None:
    """Start Werkzeug's development server, as Flask does: a thread per connection."""
    import_module("logging").getLogger("werkzeug").setLevel("ERROR")
    import_module("werkzeug.serving").run_simple(HOST, port, app, threaded=True)


def wsgiref(port: int, threads: int, app: Any) -> None:
    """Start the standard library's server: HTTP/1.0, one request at a time."""
    simple = import_module("wsgiref.simple_server")
    quiet = type("Quiet", (simple.WSGIRequestHandler,), {"log_message": lambda self, *args: None})
    patient = type("Patient", (simple.WSGIServer,), {"request_queue_size": MANY})
    simple.make_server(HOST, port, app, server_class=patient, handler_class=quiet).serve_forever()


def fastwsgi(port: int, threads: int, app: Any) -> None:
    """Start fastwsgi, in C on libuv."""
    server = import_module("fastwsgi")
    server.server.backlog = MANY
    server.run(app, HOST, port, loglevel=server.LL_ERROR)


def bjoern(port: int, threads: int, app: Any) -> None:
    """Start bjoern, in C on libev."""
    import_module("bjoern").run(app, HOST, port)


def meinheld(port: int, threads: int, app: Any) -> None:
    """Start meinheld, in C on picoev."""
    server = import_module("meinheld.server")
    server.set_access_logger(None)
    server.set_keepalive(75)
    server.set_backlog(MANY)
    server.listen((HOST, port))
    server.run(app)


if __name__ == "__main__":
    name, port, threads, target = sys.argv[1:]
    start: Callable[[int, int, Any], None] = globals()[name]
    if name == "gevent":
        import_module("gevent.monkey").patch_all()  # before the application; create_server makes gevent's sockets
    module, _, attribute = target.partition(":")
    start(int(port), int(threads), getattr(import_module(module), attribute))
