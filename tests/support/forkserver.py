"""Servers under test without the price of their imports: forked from a process that has made them already.

The interpreter and the imports of wsgiserv are 80 ms of a processor for each of hundreds of servers. All else is as
after ``python -m``: arguments, environment, directory, session, descriptors, ``sys.path``, ``__main__``, exit status.
One process serves the classes that have not imported gevent, another those whose master has.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

_MOST_BYTES = 200_000  # of a request: the environment is the most of it
_MOST_FDS = 64

can_fork = sys.platform == "linux"


class Forked:
    """A server, with the part of `subprocess.Popen` that tests use.

    Args:
        args: what follows ``python -m wsgiserv``.
        directory: its working directory.
        env: its whole environment.
        pass_fds: the descriptors that it inherits, under the same numbers.
        gevent: whether its master is going to import gevent.
    """

    def __init__(
        self,
        args: Sequence[str],
        directory: str,
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        gevent: bool = False,
    ) -> None:
        out, stdout = os.pipe()
        err, stderr = os.pipe()
        self._ended, ended = os.pipe()
        self.stdout: IO[bytes] | None = os.fdopen(out, "rb")
        self.stderr: IO[bytes] | None = os.fdopen(err, "rb")
        self.returncode: int | None = None
        try:
            request = {"args": list(args), "directory": directory, "env": dict(env), "fds": list(pass_fds)}
            line = _lines.get(gevent) or _forker(gevent, env)
            socket.send_fds(line, [json.dumps(request).encode()], [ended, stdout, stderr, *pass_fds])
            self.pid = int(line.recv(64))
        finally:
            for each in (stdout, stderr, ended):
                os.close(each)

    def poll(self) -> int | None:
        """Return the exit status, minus the number of the signal that killed it, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; raise `subprocess.TimeoutExpired` after ``timeout`` seconds."""
        if self.returncode is None:
            ready = select.poll()
            ready.register(self._ended, select.POLLIN)
            if not ready.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("wsgiserv", timeout or 0.0)
            self.returncode = int(os.read(self._ended, 64))
            os.close(self._ended)
        return self.returncode


# To the processes that fork.
_lines: dict[bool, socket.socket] = {}


def _forker(gevent: bool, env: Mapping[str, str]) -> socket.socket:
    """Return the line to a new process that forks, which ends when the line does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        ours.setsockopt(socket.SOL_SOCKET, option, 2 * _MOST_BYTES)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), *(["gevent"] if gevent else [])],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait()

    _lines[gevent] = ours
    return ours


def _serve(line: socket.socket) -> dict[str, Any] | None:
    """Fork on request, and tell of each end. Returns what a server is to do in its process, None at the end."""
    poller = select.poll()
    poller.register(line, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}
    while True:
        for fd, _ in poller.poll():
            if fd != line.fileno():
                pid, ended = children.pop(fd)
                poller.unregister(fd)
                os.close(fd)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):  # the test did not wait
                    os.write(ended, b"%d" % status)
                os.close(ended)
                continue
            data, ancillary, _, _ = line.recvmsg(_MOST_BYTES, socket.CMSG_SPACE(_MOST_FDS * 4))
            if not data:
                return None
            fds = array.array("i")
            for _, _, content in ancillary:
                fds.frombytes(content)
            # Python drops what a signal raises in its own handlers at a fork.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                pid = os.fork()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if pid == 0:
                return {**json.loads(data), "given": list(fds)}
            children[os.pidfd_open(pid)] = pid, fds[0]
            poller.register(next(reversed(children)), select.POLLIN)
            for each in fds[1:]:
                os.close(each)
            line.send(b"%d" % pid)


def _become(request: Mapping[str, Any]) -> None:
    """Make of this process what ``python -m wsgiserv`` would find."""
    os.setsid()
    _, stdout, stderr, *given = request["given"]
    wanted = {1: stdout, 2: stderr, **dict(zip(request["fds"], given, strict=True))}
    # Out of each other's way first.
    above = {target: _lift(fd, max(wanted) + 1) for target, fd in wanted.items()}
    for target, fd in above.items():
        os.dup2(fd, target)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 0 and int(name) not in wanted:
            with contextlib.suppress(OSError):  # the one of the listing
                os.close(int(name))
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[0] = request["directory"]
    sys.argv = ["-m", *request["args"]]
    sys.orig_argv = [sys.executable, "-m", "wsgiserv", *request["args"]]


def _lift(fd: int, lowest: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD, lowest)


if __name__ == "__main__":
    import gc
    import importlib
    import runpy

    from setproctitle import getproctitle

    import wsgiserv.cli  # noqa: F401
    from wsgiserv import preimport

    # What a master imports before it forks its first worker. (A server of these applications, that is: one with files
    # named like modules of the library is executed, see test_live_shadowed.py.)
    preimport.import_server()
    if "gevent" in sys.argv[2:]:
        importlib.import_module("wsgiserv.worker.gevent_worker")
    getproctitle()  # it finds the place for titles beside an environment that has not been changed
    # What the imports have executed, under pytest --cov: this process ends after the figures have been added up.
    if coverage := sys.modules.get("coverage"):
        coverage.Coverage.current().save()
    # Else each server would search all of that for garbage, several times, and copy the pages it is on.
    gc.collect()
    gc.freeze()
    _line = socket.socket(fileno=int(sys.argv[1]))
    _request = _serve(_line)
    if _request is not None:
        _line.detach()
        _become(_request)
        del _line, _request, getproctitle, gc, preimport
        runpy.run_module("wsgiserv", run_name="__main__", alter_sys=True)
