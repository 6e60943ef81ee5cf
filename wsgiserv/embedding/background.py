"""Starts the child process of a `wsgiserv.Server`, talks to it, and ends it: the program's side.

The functions that gevent replaces are looked up when they are called, so that the greenlets of a patched program go on
while it waits; processes are made by the C module's, which gevent leaves alone.
"""

from __future__ import annotations

import json
import marshal
import os
import pickle
import posix
import re
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]
from typing import Any, Final, NoReturn

from wsgiserv.errors import ConfigError

# Above the standard streams, in the place of which others are put.
_LOW: Final = 10
# After a signal that is to end it at once.
_QUIT_S: Final = 3.0
_POLL_S: Final = 0.01
# Two threads that fork would restore each other's warning filters.
_forking = threading.Lock()
_INHERITED: Final = re.compile(r"fd://(\d+)")

# Of a fresh interpreter. Nothing is imported before the path is the program's: marshal is built in.
_CODE: Final = """\
import marshal, sys
payload = open({payload}, 'rb')
sys.path[:] = marshal.load(payload)
from wsgiserv.library_first import LibraryFirst
with LibraryFirst():
    from wsgiserv.embedding.child import main
sys.exit(main(payload, {channel}, {parent}))
"""

# The program's ends of all lines, by descriptor. A copy in a child of the program would hide the end of the program.
_lines: Final[dict[int, socket.socket]] = {}


def _leave_in_child() -> None:
    global _forking
    _forking = threading.Lock()  # another thread may have held it
    for line in _lines.values():
        with suppress(OSError):
            line.close()
    _lines.clear()


os.register_at_fork(after_in_child=_leave_in_child)


class LogFile:
    """A file without a name, which the server writes to and the program reads.

    Attributes:
        fd: its descriptor.
    """

    def __init__(self) -> None:
        # Not in memory: a server that runs for days may log much.
        with tempfile.TemporaryFile(prefix="wsgiserv-log-") as file:
            self.fd = _lift(file.fileno())

    def __del__(self) -> None:
        # In place of a file object, which would warn.
        with suppress(AttributeError, OSError):
            os.close(self.fd)

    def text(self) -> str:
        """Return what has been written so far."""
        # By its position: the one of the file is the server's.
        size = os.fstat(self.fd).st_size
        pieces = []
        at = 0
        while at < size and (piece := os.pread(self.fd, size - at, at)):
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces).decode("utf-8", "backslashreplace")


class Child:
    """The child process of a server.

    Args:
        app, settings: the arguments of `Server`.

    Attributes:
        pid: its process id.
        owner: the process id of the program.
        log: its standard output and error.
        ready: its message that all workers serve; None until then.
        end: its last message; None while there is none.
        status: its exit status, or minus the number of the signal that has ended it; None while it runs.
    """

    def __init__(self, app: str | Callable[..., Any], settings: Mapping[str, Any]) -> None:
        self.owner = os.getpid()
        self.ready: dict[str, Any] | None = None
        self.end: dict[str, Any] | None = None
        self.status: int | None = None
        self.log = LogFile()
        self._received = b""
        self._is_closed = False
        self._outcomes: dict[int, dict[str, Any]] = {}
        self._asked = 0
        self._reading = threading.Lock()
        self._sock, theirs = socket.socketpair()
        self._sock.setblocking(False)
        _lines[self._sock.fileno()] = self._sock
        try:
            with theirs:
                if isinstance(app, str):
                    self.pid = _spawn(app, settings, theirs.fileno(), self.log.fd)
                else:
                    self.pid = _fork(app, settings, theirs.fileno(), self.log.fd)
        except BaseException:
            self._close()
            raise

    # ---- messages ----------------------------------------------------------------------------------------

    def wait(self, is_due: Callable[[], bool], until: float) -> bool:
        """Return True when ``is_due`` is, False at the time ``until`` (``time.monotonic()`` seconds), or at its end."""
        while not is_due():
            left_s = until - time.monotonic()
            if self._is_closed or left_s <= 0:
                return is_due()
            # Again after 0.1 s: another thread may have read what this one waits for.
            self._read(min(left_s, 0.1))
        return True

    def wait_for_ready(self, until: float) -> bool:
        """Return True when all workers serve; False at the time ``until``, or at its end."""
        return self.wait(lambda: self.ready is not None, until)

    def reload(self, until: float) -> tuple[bool, str]:
        """Reload; return the outcome with a reason."""
        with self._reading:
            self._asked += 1
            number = self._asked
        with suppress(OSError):
            self._sock.send(json.dumps({"command": "reload", "number": number}).encode() + b"\n")
        self.wait(lambda: number in self._outcomes, until)
        found = self._outcomes.pop(number, None)
        if found is not None:
            return bool(found["ok"]), str(found["reason"])
        return False, "the server has ended" if self._is_closed else "it is not done in time, and goes on"

    def _read(self, wait_s: float) -> None:
        with self._reading:
            if self._is_closed:
                return
            poller = select.poll()
            poller.register(self._sock.fileno(), select.POLLIN)
            if not poller.poll(wait_s * 1000):
                return
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close()
                return
            *lines, self._received = (self._received + data).split(b"\n")
            for line in lines:
                self._note(json.loads(line))

    def _note(self, message: dict[str, Any]) -> None:
        match message["event"]:
            case "ready":
                self.ready = message
            case "outcome":
                self._outcomes[message["number"]] = message
            case "end":
                self.end = message

    def _close(self) -> None:
        self._is_closed = True
        _lines.pop(self._sock.fileno(), None)
        self._sock.close()

    # ---- the end -----------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the process runs."""
        return not self._has_ended()

    @property
    def has_hung_up(self) -> bool:
        """Whether it has closed its end of the line, as it does when it ends."""
        return self._is_closed

    def _has_ended(self) -> bool:
        if self.status is None:
            try:
                pid, status = posix.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # something else in the program waits for all children
                self.status = self.end["status"] if self.end is not None else -signal.SIGKILL
            else:
                self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def _wait_for_end(self, wait_s: float) -> bool:
        until = time.monotonic() + wait_s
        self.wait(lambda: False, until)  # to the end of the line, which comes just before that of the process
        while not self._has_ended():
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_S)
        return True

    def stop(self, wait_s: float) -> int:
        """End the process: gracefully, after ``wait_s`` seconds at once, at last by SIGKILL; return its status."""
        if os.getpid() != self.owner:
            return 0  # a copy in a child of the program
        self._signal(signal.SIGTERM)
        if not self._wait_for_end(wait_s):
            self.end_now()
        self._close()
        return self.status or 0

    def end_now(self) -> None:
        """End the process at once. Does nothing in a child of the program."""
        if os.getpid() != self.owner or self.status is not None:
            return
        self._signal(signal.SIGQUIT)
        if not self._wait_for_end(_QUIT_S):
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)  # the workers, too
            self._signal(signal.SIGKILL)
            self._wait_for_end(_QUIT_S)
        self._close()

    def _signal(self, number: int) -> None:
        # Not after it has been waited for: the number may be another process's by then.
        if not self._has_ended():
            with suppress(OSError):
                os.kill(self.pid, number)


# ---- the process -------------------------------------------------------------------------------------------


def _spawn(app: str, settings: Mapping[str, Any], channel: int, log: int) -> int:
    """Start a fresh interpreter; return its process id."""
    if not sys.executable:
        raise RuntimeError(
            "wsgiserv.Server: sys.executable is empty, so no Python can be started here: give the application itself "
            "in place of its name"
        )
    with tempfile.TemporaryFile(prefix="wsgiserv-arguments-") as payload:
        # An empty entry is the working directory, which the child has from here.
        marshal.dump([str(entry) for entry in sys.path], payload)
        try:
            payload.write(pickle.dumps((app, dict(settings))))
        except Exception as error:
            raise ConfigError(
                f"WS1922 the arguments of wsgiserv.Server cannot be sent to the child process: {error}. Accepted for "
                "an application given by its name: functions and classes of modules; or use config="
            ) from None
        payload.flush()
        payload.seek(0)
        above = [_lift(fd) for fd in (payload.fileno(), channel, log)]
        try:
            return _execute(above)
        finally:
            for fd in above:
                os.close(fd)


def _execute(above: list[int]) -> int:
    names = range(3, 5)
    code = _CODE.format(payload=names[0], channel=names[1], parent=os.getpid())
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
        *((os.POSIX_SPAWN_DUP2, above[2], fd) for fd in (1, 2)),
        *((os.POSIX_SPAWN_DUP2, fd, name) for fd, name in zip(above, names, strict=False)),
    ]
    # The interpreter's own options, as multiprocessing passes them on.
    argv = [sys.executable, *_args_from_interpreter_flags(), "-c", code]
    return posix.posix_spawn(sys.executable, argv, os.environ, file_actions=actions, setsigmask=())


def _lift(fd: int) -> int:
    return fcntl(fd, F_DUPFD_CLOEXEC, _LOW)


def _fork(app: Callable[..., Any], settings: Mapping[str, Any], channel: int, log: int) -> int:
    """Fork this process, for an application that is here alone; return the child's process id."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # None, closed, or an object of a test runner
            stream.flush()
    parent = os.getpid()
    with _forking, warnings.catch_warnings():
        # From 3.12 on Python warns of other threads, which the child has been prepared for.
        warnings.simplefilter("ignore", DeprecationWarning)
        # The program's handlers must not run in the child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = posix.fork()
            if pid == 0:
                _become_server(app, settings, channel, log, parent)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _become_server(
    app: Callable[..., Any], settings: Mapping[str, Any], channel: int, log: int, parent: int
) -> NoReturn:
    failure: BaseException | None = None
    try:
        os.setsid()
        from wsgiserv.embedding.forked import isolate

        inherited = {int(number) for number in _INHERITED.findall(str(settings.get("bind")))}
        line = _lift(channel)
        os.close(channel)
        isolate(log, {line, *inherited})
        from wsgiserv.embedding.child import run_child
        from wsgiserv.embedding.process_state import leave_program
        from wsgiserv.master.program import ProgramLine

        raise SystemExit(run_child(ProgramLine(line, parent), app, settings, None, leave_program))
    except BaseException as error:
        failure = error
    try:
        from wsgiserv.embedding.process_state import end_child

        end_child(failure)
    finally:
        os._exit(1)
