"""The application of chaos: it forks, streams, and uses pools of processes, as real applications do."""

from __future__ import annotations

import contextvars
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

FORK = multiprocessing.get_context("fork")
IS_GEVENT = "gevent.monkey" in sys.modules and sys.modules["gevent.monkey"].is_module_patched("socket")
LEAKED: contextvars.ContextVar[str] = contextvars.ContextVar("LEAKED", default="")

# A pool's processes do not see that their worker has been killed.
_LONGEST_S = 15

View = Callable[[str, dict[str, Any]], Iterable[bytes]]


def hello(name: str, environ: dict[str, Any]) -> Iterable[bytes]:
    """Answer at once; what a request before has left behind is an error."""
    if LEAKED.get() or sys.exc_info() != (None, None, None):
        return [f"{name} leaked {LEAKED.get()!r} {sys.exc_info()[0]}\n".encode()]
    LEAKED.set(name)
    return [f"{name}\n".encode()]


def body(name: str, environ: dict[str, Any]) -> Iterable[bytes]:
    """Answer with the digest of the body."""
    digest = hashlib.sha256(environ["wsgi.input"].read()).hexdigest()
    return [f"{name} {digest}\n".encode()]


def stream(name: str, environ: dict[str, Any]) -> Iterator[bytes]:
    """A stream with pauses, whose last block is followed by silence."""
    for count in range(20):
        yield f"{name} {count}\n".encode() * 2000
        time.sleep(0.005)
    yield f"{name} last\n".encode()
    time.sleep(0.05)


def large(name: str, environ: dict[str, Any]) -> Iterable[bytes]:
    """Two MiB of a known length."""
    line = f"{name}\n".encode()
    return [line * (2 * 1024 * 1024 // len(line))]


def file(name: str, environ: dict[str, Any]) -> Iterable[bytes]:
    """A file, sent by ``wsgi.file_wrapper``."""
    made = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
    made.write(f"{name}\n".encode() * 20_000)
    made.seek(0)
    found: Iterable[bytes] = environ["wsgi.file_wrapper"](made)
    return found


def fork_raise(name: str, environ: dict[str, Any]) -> Iterable[bytes]:
    """A child that raises in the view."""
    pid = os.fork()
    if pid == 0:
        _be_silent()
        raise RuntimeError("the child of a view raises")
    os.waitpid(pid, 0)
    return [f"{name}\n".encode()]


def fork_exit(name: str, environ: dict[str, Any]) -> Iterable[bytes]:
    """A child that calls sys.exit()."""
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    os.waitpid(pid, 0)
    return [f"{name}\n".encode()]


def fork_return(name: str, environ: dict[str, Any]) -> Iterable[bytes]:
    """A child that returns a response."""
    pid = os.fork()
    if pid == 0:
        return [b"the child's answer\n"]
    os.waitpid(pid, 0)
    return [f"{name}\n".encode()]


def _be_silent() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _square(number: int) -> int:
    return number * number


def pool(name: str, environ: dict[str, Any]) -> Iterable[bytes]:
    """A pool of processes, ended by ``terminate()`` at the end of its ``with`` block."""
    with FORK.Pool(2, signal.alarm, (_LONGEST_S,)) as workers:
        total = sum(workers.map(_square, range(10)))
    return [f"{name} {total}\n".encode()]


def executor(name: str, environ: dict[str, Any]) -> Iterable[bytes]:
    """The same by concurrent.futures."""
    with ProcessPoolExecutor(2, FORK, signal.alarm, (_LONGEST_S,)) as workers:
        total = sum(workers.map(_square, range(10)))
    return [f"{name} {total}\n".encode()]


def terminate(name: str, environ: dict[str, Any]) -> Iterable[bytes]:
    """A process that is ended by SIGTERM."""
    process = FORK.Process(target=time.sleep, args=(5,))
    process.start()
    process.terminate()
    process.join()
    return [f"{name} {process.exitcode}\n".encode()]


def command(name: str, environ: dict[str, Any]) -> Iterable[bytes]:
    """A program with ``preexec_fn``."""
    done = subprocess.run(["true"], preexec_fn=os.getpid, check=False)
    return [f"{name} {done.returncode}\n".encode()]


VIEWS: dict[str, View] = {
    f"/{view.__name__}": view
    for view in (
        hello,
        body,
        stream,
        large,
        file,
        fork_raise,
        fork_exit,
        fork_return,
        terminate,
        command,
        # gevent's threads are greenlets, and these two wait for theirs by a real lock of another process.
        *(() if IS_GEVENT else (pool, executor)),
    )
}


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application."""
    name = environ.get("HTTP_X_SOAK_ID", "nobody")
    view = VIEWS.get(environ["PATH_INFO"])
    if view is None:
        start_response("404 Not Found", [("X-Soak-Id", name)])
        return [f"{name}\n".encode()]
    found = view(name, environ)
    headers = [("X-Soak-Id", name), ("Content-Type", "text/plain")]
    if isinstance(found, list):
        headers.append(("Content-Length", str(sum(map(len, found)))))
    start_response("200 OK", headers)
    return found
