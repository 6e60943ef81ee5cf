"""Applications that take the socket of an upgrade request, in each of the ways that libraries do."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from wsgiserv.net.event_loop import EventLoop
from wsgiserv.net.serving_context import ServingContext

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
KEYS = ("wsgiserv.socket", "gunicorn.socket")
# What a view leaves behind for the next request.
_kept: dict[str, Any] = {}


def _talk(sock: Any, ends: bool = True) -> None:
    """Echo until the client's end; say so to a client that still reads."""
    while data := sock.recv(65536):
        sock.sendall(data)
        if data.endswith(b"quit\n"):
            return
    if ends:
        sock.sendall(b"bye\n")


def echo(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Switch, echo, and end with an empty list."""
    sock = environ["wsgiserv.socket"]
    sock.sendall(SWITCH)
    _talk(sock)
    return []


def nothing(environ: Environ, start_response: StartResponse) -> None:
    """The same, and end with nothing."""
    echo(environ, start_response)


def stop(environ: Environ, start_response: StartResponse) -> None:
    """The same, and end with StopIteration, as libraries for gunicorn do."""
    echo(environ, start_response)
    raise StopIteration


def closed(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """The same, close the socket, and end with a response that nobody gets."""
    sock = environ["gunicorn.socket"]
    echo(environ, start_response)
    sock.close()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"not sent"]


def generated(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """The same from a generator."""
    sock = environ["wsgiserv.socket"]
    sock.sendall(SWITCH)
    yield b""
    _talk(sock)
    yield b"not sent"


def polled(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """The same, with select(2) on the descriptor before each read."""
    sock = environ["wsgiserv.socket"]
    sock.sendall(SWITCH)
    while True:
        assert select.select([sock], [], [], 15.0)[0], "nothing to read"
        data = sock.recv(65536)
        if not data:
            sock.sendall(b"bye\n")
            return []
        sock.sendall(data)
        if data.endswith(b"quit\n"):
            return []


def filed(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """The same, line by line through files made of it, which stay open."""
    sock = environ["wsgiserv.socket"]
    reader, writer = sock.makefile("rb"), sock.makefile("wb")
    _kept["files"] = reader, writer
    writer.write(SWITCH)
    writer.flush()
    for line in reader:
        writer.write(line)
        writer.flush()
        if line == b"quit\n":
            return []
    writer.write(b"bye\n")
    writer.flush()
    return []


def duplicated(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """The same through a duplicate, which stays open."""
    _kept["copy"] = copy = environ["wsgiserv.socket"].dup()
    copy.sendall(SWITCH)
    _talk(copy)
    return []


def detached(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """The same through its descriptor, in a socket of the application's own, which stays open."""
    _kept["own"] = sock = socket.socket(fileno=environ["wsgiserv.socket"].detach())
    sock.setblocking(True)
    sock.sendall(SWITCH)
    _talk(sock)
    return []


def in_thread(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Let a thread read that is still reading when the call ends; `quit` ends the call alone."""
    sock = environ["wsgiserv.socket"]
    sock.sendall(SWITCH)
    over = threading.Event()

    def read() -> None:
        try:
            while data := sock.recv(65536):
                sock.sendall(data)
                if data.endswith(b"quit\n"):
                    over.set()
            sock.sendall(b"bye\n")
        except OSError as error:
            _kept["reader"] = type(error).__name__
        finally:
            over.set()

    thread = threading.Thread(target=read)
    thread.start()
    over.wait()
    return []


def forked(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Fork in the middle; the child keeps all that it has open until it is told to end."""
    sock = environ["wsgiserv.socket"]
    sock.sendall(SWITCH)
    pid = os.fork()
    if not pid:
        sock.close()  # of the child's: the client sees nothing of it
        signal.pause()
    _kept["child"] = pid
    _talk(sock)
    return []


def reap(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """End the child of `forked`."""
    pid = _kept.pop("child")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return _text(start_response, "reaped")


def used_late(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Keep the socket unused beyond the call."""
    _kept["late"] = environ["wsgiserv.socket"]
    return _text(start_response, "kept")


def use_late(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Use what `used_late` has kept."""
    try:
        _kept.pop("late").sendall(b"too late")
    except OSError as error:
        return _text(start_response, os.strerror(error.errno or 0))
    return _text(start_response, "sent")


def use_again(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Use the socket of the last `echo_kept` after its end."""
    sock = _kept["sock"]
    said = []
    for use in (lambda: sock.send(b"x"), lambda: sock.recv(1), lambda: sock.settimeout(1), sock.fileno, sock.close):
        try:
            said.append(repr(use()))
        except OSError as error:
            said.append(os.strerror(error.errno or 0))
    return _text(start_response, "; ".join(said))


def echo_kept(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """As `echo`; the socket is kept beyond the call."""
    _kept["sock"] = environ["wsgiserv.socket"]
    return echo(environ, start_response)


def fail_before(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Raise before the first use."""
    raise ValueError("before the first use")


def fail_after(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Raise after the first use."""
    environ["wsgiserv.socket"].sendall(SWITCH)
    raise ValueError("after the first use")


def refuse(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer 400 without using the socket."""
    body = b"no upgrade\n"
    start_response("400 Bad Request", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def begun(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Use the socket behind the beginning of a response."""
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"begun ")
    try:
        environ["wsgiserv.socket"].sendall(SWITCH)
    except RuntimeError as error:
        return [str(error).encode()]
    return [b"used"]


def hinted(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Send early hints before the switch."""
    environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
    return echo(environ, start_response)


def last_words(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Wait for the end of the client's data; then send as many bytes as the query says, and leave at once."""
    sock = environ["wsgiserv.socket"]
    sock.sendall(SWITCH)
    while sock.recv(65536):
        pass
    sock.sendall(b"z" * int(environ["QUERY_STRING"]))
    return []


def deaf(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Switch, and do not care for anything any more."""
    sock = environ["wsgiserv.socket"]
    sock.sendall(SWITCH)
    while True:
        time.sleep(0.05)


def describe(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Tell about the socket without using it."""
    found = []
    for key in KEYS:
        sock = environ.get(key)
        found.append(f"{key}: {'none' if sock is None else isinstance(sock, type(environ[KEYS[0]]))}")
    sock = environ.get(KEYS[0])
    if sock is not None:
        found += [repr(sock), repr(sock.getpeername()), repr(sock.getsockname())]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.append(str(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
    body = environ["wsgi.input"].read()
    return _text(start_response, "\n".join([*found, f"body: {body!r}"]))


def wait(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer after the seconds of the query."""
    time.sleep(float(environ["QUERY_STRING"]))
    return _text(start_response, "waited")


def figures(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer with the number of running calls that have taken a socket, of clients, and of greenlets."""
    gc.collect()
    greenlet: Any = sys.modules.get("greenlet")
    loop = next(each for each in gc.get_objects() if isinstance(each, EventLoop))
    context = next(each for each in gc.get_objects() if type(each) is ServingContext)
    kinds = [type(each) for each in gc.get_objects()]
    found = {
        "upgrades": len(context.upgrades),
        "connections": len(loop.connections),
        "greenlets": 0 if greenlet is None else sum(issubclass(kind, greenlet.greenlet) for kind in kinds),
    }
    return _text(start_response, json.dumps(found))


def hello(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer at once, with the process's id."""
    return _text(start_response, str(os.getpid()))


def _text(start_response: StartResponse, text: str) -> list[bytes]:
    body = text.encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


_VIEWS = {
    f"/{view.__name__}": view
    for view in (
        *(echo, nothing, stop, closed, generated, polled, filed, duplicated, detached, in_thread, forked, reap),
        *(used_late, use_late, use_again, echo_kept, fail_before, fail_after, refuse, begun, hinted, last_words),
        *(deaf, describe, wait, figures),
    )
}


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by the path; a path of no view is `hello`."""
    view: Any = _VIEWS.get(environ["PATH_INFO"], hello)
    found: Iterable[bytes] = view(environ, start_response)
    return found
