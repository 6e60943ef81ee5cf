"""An application that forks in every way, for tests of what its children are not: workers."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from urllib.parse import parse_qs

StartResponse = Callable[..., Callable[[bytes], object]]

_LIST = "import os,sys; sys.path.insert(0, {here!r}); import childapps; childapps.list_into({path!r})"


_own: set[str] = set()


def shared_descriptors() -> dict[str, str]:
    """Return what this process has open but standard streams and files: sockets, epolls, pipes, memory."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if int(name) > 2 and target.startswith(("socket:", "pipe:", "anon_inode:", "/memfd")):
            found[name] = target
    return found


def list_into(path: str) -> None:
    with open(path + ".draft", "w") as file:
        json.dump(shared_descriptors(), file)
    os.rename(path + ".draft", path)


def _spawn_list(path: str) -> None:
    list_into(path)


def _start_lister(how: str, path: str) -> Callable[[], object]:
    """Start a child that lists its descriptors into ``path``; return what waits for it."""
    program = [sys.executable, "-c", _LIST.format(here=os.path.dirname(__file__), path=path)]
    if how in ("fork", "double", "forkpty"):
        pid = os.forkpty()[0] if how == "forkpty" else os.fork()
        if pid == 0:
            if how == "double" and os.fork():
                os._exit(0)
            list_into(path)
            os._exit(0)
        return lambda: os.waitpid(pid, 0)
    if how in ("mp-fork", "mp-spawn", "mp-forkserver"):
        process = multiprocessing.get_context(how[3:]).Process(target=_spawn_list, args=(path,))
        process.start()
        return process.join
    if how == "preexec":
        return subprocess.Popen(program, close_fds=False, preexec_fn=lambda: None).wait
    if how == "popen":
        return subprocess.Popen(program, close_fds=False).wait
    if how == "system":
        quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in program)
        os.system(quoted + " &")
        return lambda: None
    assert how == "posix_spawn"
    pid = os.posix_spawn(program[0], program, os.environ)
    return lambda: os.waitpid(pid, 0)


def _descriptors(how: str) -> object:
    """Return what the child has of what this process had before the fork."""
    path = os.path.abspath(f"descriptors-{how}-{os.getpid()}")
    if not _own:
        # Before multiprocessing has its own, which its children share. libev's stay in a fork; all have one name.
        libevs = {"anon_inode:[eventfd]", "anon_inode:[eventpoll]"} if "gevent" in sys.modules else set()
        _own.update(set(shared_descriptors().values()) - libevs)
    _start_lister(how, path)()
    while not os.path.exists(path):
        time.sleep(0.01)
    with open(path) as file:
        theirs = json.load(file)
    os.unlink(path)
    return sorted(set(theirs.values()) & _own)


class _Body:
    """An iterable that forks where it is told to."""

    def __init__(self, where: str, leave: Callable[[], object]) -> None:
        self._where = where
        self._leave = leave
        self._blocks = iter([b"a", b"b"])
        self.status: int | None = None

    def _fork(self) -> None:
        pid = os.fork()
        if pid == 0:
            self._leave()
        else:
            self.status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with open("status", "w") as file:
                print(self.status, end="", file=file)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._where == "next" and self.status is None:
            self._fork()
        return next(self._blocks)

    def close(self) -> None:
        with open("closes", "a") as file:
            print(os.getpid(), file=file)
        if self._where == "close":
            self._fork()


def _nothing() -> None:
    pass


def _raise() -> None:
    raise ValueError("the child raises")


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)


def _print() -> None:
    print("the child prints", end="")


def _finally() -> None:
    try:
        sys.exit(4)
    finally:
        print("the child's finally", file=sys.stderr)


_LEAVE: dict[str, Callable[[], object]] = {
    "return": _nothing,
    "raise": _raise,
    "exit": lambda: sys.exit(3),
    "exit-none": lambda: sys.exit(),
    "exit-text": lambda: sys.exit("the child says why"),
    "interrupt": _interrupt,
    "terminate": _terminate,
    "print": _print,
    "finally": _finally,
}


def _come_back(how: str, start_response: StartResponse) -> Iterable[bytes]:
    """Fork, and let the child come back to the server; answer with its exit status."""
    pid = os.fork()
    if pid == 0:
        if how == "write":
            start_response("200 OK", [("Content-Type", "text/plain")])(b"of the child")
        _LEAVE.get(how, _nothing)()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"of the child"]
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(status).encode()]


def _pool() -> object:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [-1, -2, 3])


def _terminated() -> object:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join(10)
    return process.exitcode


def _executor() -> object:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
        return executor.submit(abs, -7).result()


def _stay() -> object:
    """Fork a child that stays, in this process's session."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        # An interrupt during Python's own handlers at a fork is lost, by Python.
        os.write(writer, b"!")
        end = time.monotonic() + 120
        while time.monotonic() < end:  # a signal that comes just before a sleep is heard behind it only
            time.sleep(0.05)
        os._exit(0)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    return pid


def _stay_from_c() -> object:
    """The same by C code: no handler of Python runs, and the child keeps all descriptors."""
    libc = ctypes.PyDLL(None)
    pid = libc.fork()
    if pid == 0:
        while True:
            libc.pause()
    return pid


def _stay_in_gevent() -> object:
    """The same, in a child that lets the hub run."""
    pid = os.fork()
    if pid == 0:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            time.sleep(0.01)
        os._exit(0)
    return pid


def _handlers() -> object:
    """Return the signals whose handlers are Python functions in a child, and whether there is a wakeup descriptor."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        numbers = [int(n) for n in signal.valid_signals() if callable(signal.getsignal(n))]
        text = json.dumps([numbers, signal.set_wakeup_fd(-1), len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))])
        os.write(writer, text.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    answer = json.loads(os.read(reader, 65536))
    os.close(reader)
    os.close(writer)
    return answer


def _wait_for_file(name: str) -> object:
    with open(name + ".began", "w"):
        pass
    end = time.monotonic() + 20
    while not os.path.exists(name):
        if time.monotonic() > end:
            return "late"
        time.sleep(0.01)
    return "whole"


_DO: dict[str, Callable[[], object]] = {
    "/pool": _pool,
    "/terminated": _terminated,
    "/executor": _executor,
    "/stay": _stay,
    "/stay-from-c": _stay_from_c,
    "/stay-in-gevent": _stay_in_gevent,
    "/handlers": _handlers,
    "/pid": os.getpid,
}


def _cut(start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"begun"
    raise ValueError("cut")


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    if path == "/back":
        return _come_back(query["how"], start_response)
    if path == "/body":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return _Body(query["where"], _LEAVE[query["how"]])
    if path == "/cut":
        return _cut(start_response)
    if path == "/descriptors":
        answer: object = _descriptors(query["how"])
    elif path == "/wait":
        answer = _wait_for_file(query["name"])
    else:
        answer = _DO[path]() if path in _DO else path
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
