"""From one master to the next (SIGUSR2): new code, a new Python or wsgiserv, the same sockets.

Owns: `Invocation` (how this process was started), `NewMaster` (the next master, seen by this one),
`OldMaster` (the master before, seen by the next), and what passes between the two.
Must not know: workers, when it is time to upgrade, what the old master does when the new one is ready.

The next master is this one's child. It gets the listening sockets, and the workers' handoff channel, as
descriptors, and one end of a pipe; an environment variable says which is which. Over the pipe it says ``ready``,
or why it has failed; a pipe that is closed without a word means that it has died.
"""

from __future__ import annotations

import json
import os
import sys
from _socket import socket
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from os import _exit, chdir, close, execve, getpid, pipe
from signal import SIG_SETMASK, SIGTERM, Signals, pthread_sigmask
from time import monotonic, sleep
from typing import Any, Final

from wsgiserv.ipc import MessageError, MessageReader, OutcomeWriter
from wsgiserv.master.crash_report import describe_exit
from wsgiserv.master.signals import STOP_SIGNALS, SignalQueue, ignore_requests
from wsgiserv.master.spawn import fork_child
from wsgiserv.net.listener import Listener
from wsgiserv.process import reap, send_signal

__all__ = ["TOLD_TO_STOP", "Invocation", "NewMaster", "OldMaster", "start_successor"]

# Why a next master has failed that was told to stop: no fault of its code.
TOLD_TO_STOP: Final = "it was told to stop"

_VARIABLE = "WSGISERV_UPGRADE"
_LONGEST_TEXT = 32_000
# A process that has closed its pipe as it ended can be waited for within this time.
_ENDED_S: Final = 0.1


@dataclass(frozen=True)
class Invocation:
    """How this process was started, so that the next one can be started the same way.

    Attributes:
        argv: the interpreter and its arguments, ``sys.orig_argv``.
        environ: the environment at the start.
        directory: the working directory at the start.
    """

    argv: Sequence[str]
    environ: Mapping[str, str]
    directory: str

    @classmethod
    def of_this_process(cls, environ: Mapping[str, str], directory: str) -> Invocation:
        """Return how this process was started; called before anything changes its environment."""
        argv = [sys.executable or sys.orig_argv[0], *sys.orig_argv[1:]]
        return cls(argv, dict(environ), directory)


class OldMaster:
    """The master that has started this one. Everything that it has left is taken over, or closed.

    Attributes:
        pid: its process id.
        handoff: the descriptors of the workers' handoff channel, receiving and sending end; or None.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        self.pid: int = told["pid"]
        self.handoff: tuple[int, int] | None = tuple(told["handoff"]) if told["handoff"] else None
        self._told = told
        os.set_inheritable(told["pipe"], False)
        self._outcome = OutcomeWriter(told["pipe"])

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> OldMaster | None:
        """Return the predecessor that the environment tells of, and remove the variable; None when there is none."""
        text = environ.pop(_VARIABLE, None)
        if text is None:
            return None
        try:
            told = json.loads(text)
            if told["for"] != getpid():
                return None  # a variable that a child of the next master has inherited
            return cls(told)
        except (ValueError, KeyError, TypeError, OSError):
            return None

    def listeners(self, secure: bool) -> list[Listener]:
        """Return its listening sockets, which are this process's now."""
        found = []
        for each in self._told["listeners"]:
            sock = socket(fileno=each["fd"])
            os.set_inheritable(sock.fileno(), False)
            found.append(
                Listener(sock, each["spec"], secure=secure, inherited=each["inherited"], path=each["path"])
            )
        return found

    @property
    def activated(self) -> bool:
        """Whether its sockets came from the service manager, so that `bind` does not count."""
        return bool(self._told["activated"])

    def ready(self) -> None:
        """Say that this master serves: the old one takes its leave."""
        self._outcome.tell({"ready": True})

    def failed(self, reason: str) -> None:
        """Say that this master ends, and why: the old one goes on. Nothing when it was ready before."""
        self._outcome.tell({"ready": False, "reason": reason[:_LONGEST_TEXT]})

    def close(self) -> None:
        """Hang up. Also called in each worker, which must not hold the line."""
        self._outcome.close()


class NewMaster:
    """The next master, from its fork until it is ready or has failed.

    Attributes:
        pid: its process id.
        ready: whether it serves.
        reason: why it has failed; empty while that is not known.
        over: whether one or the other has happened.
        ended: whether its process has ended.
    """

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.ready = False
        self.reason = ""
        self.over = False
        self.ended = False
        self._wait_status: int | None = None
        self._fd = fd
        self._reader = MessageReader(fd)

    def fileno(self) -> int:
        """Return the descriptor to poll while it is not `over`."""
        return self._fd

    def listen(self) -> bool:
        """Hear what it has to say; True when it is decided. Called when the descriptor is readable, or a child died."""
        if self.over:
            return False
        try:
            messages, closed = self._reader.read()
        except MessageError as error:
            messages, closed = [{"reason": f"it has sent a corrupt message ({error})"}], True
        if not (messages or closed):
            return False
        self.over = True
        self.close()
        outcome = messages[0] if messages else {"reason": self._last_word()}
        self.ready = outcome.get("ready") is True
        self.reason = "" if self.ready else str(outcome.get("reason"))
        return True

    def _last_word(self) -> str:
        """Return why it has closed its pipe without a word: how its process has ended, where it has."""
        until = monotonic() + _ENDED_S
        while not self.reap() and monotonic() < until:
            sleep(0.001)
        status = self._wait_status
        if status is None:
            return "it ended without a word; its lines in the log say more"
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in STOP_SIGNALS:
            return TOLD_TO_STOP  # before it could catch the signal
        return f"it {describe_exit(status)} without a word; its lines in the log say more"

    def reap(self) -> bool:
        """Wait for its process if it has ended; return whether it has. Never blocks."""
        if not self.ended and (end := reap(self.pid)):
            self.ended, self._wait_status = True, end.wait_status
        return self.ended

    def stop(self, signal: Signals = SIGTERM) -> None:
        """Tell it to end, unless it has."""
        if not self.ended:
            send_signal(self.pid, signal)

    def close(self) -> None:
        """Close the pipe; also called in each worker."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1


def start_successor(
    invocation: Invocation,
    listeners: Sequence[Listener],
    handoff: tuple[int, int] | None,
    *,
    activated: bool,
    signals: SignalQueue,
    before_exec: Callable[[], object],
) -> NewMaster:
    """Start the next master. Raises OSError when the system would not.

    Args:
        invocation: how this one was started.
        listeners: the listening sockets it gets.
        handoff: the descriptors of the workers' channel, or None.
        activated: whether the sockets came from the service manager.
        signals: this master's; the child leaves them.
        before_exec: called in the child just before it becomes the next master.
    """
    reader, writer = pipe()
    try:
        pid = fork_child(signals)
    except OSError:
        close(reader)
        close(writer)
        raise
    if pid:
        close(writer)
        return NewMaster(pid, reader)
    try:
        # A signal to all processes of the server (pkill -USR1 wsgiserv) means this master. Ignored, not caught: that
        # lasts over execve(2), until the next master catches it.
        ignore_requests()
        pthread_sigmask(SIG_SETMASK, ())
        before_exec()
        told = {
            "for": getpid(),
            "pid": os.getppid(),
            "pipe": writer,
            "activated": activated,
            "handoff": handoff,
            "listeners": [
                {
                    "fd": listener.fileno(),
                    "spec": listener.spec,
                    "inherited": listener.inherited,
                    "path": listener.path,
                }
                for listener in listeners
            ],
        }
        for fd in (writer, *(handoff or ()), *(listener.fileno() for listener in listeners)):
            os.set_inheritable(fd, True)
        environ = {
            name: value
            for name, value in invocation.environ.items()
            if name not in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", _VARIABLE)
        }
        environ[_VARIABLE] = json.dumps(told)
        if "WATCHDOG_PID" in environ:
            environ["WATCHDOG_PID"] = str(getpid())
        try:
            chdir(invocation.directory)
        except (
            FileNotFoundError
        ):  # removed, as releases are: the next master is in this one's, and knows its name
            environ["PWD"] = invocation.directory
        execve(invocation.argv[0], list(invocation.argv), environ)
    except BaseException as error:
        try:
            OutcomeWriter(writer).tell({"ready": False, "reason": f"it cannot be started: {error}"})
        finally:
            _exit(127)
    raise AssertionError("execve returned")
