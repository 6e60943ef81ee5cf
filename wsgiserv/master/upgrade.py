"""The upgrade in place (SIGUSR2): a next master with new code or a new Python takes over the same sockets.

The next master is a child of this one. It inherits the listening sockets, the workers' handoff channel and one end of
a pipe; an environment variable names the descriptors. Through the pipe it reports that it serves, or why it failed. A
pipe that closes without a report means that the next master died.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from _socket import socket
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from os import _exit, chdir, close, execve, getpid, pipe
from signal import SIG_SETMASK, SIGKILL, SIGQUIT, SIGTERM, Signals, pthread_sigmask
from time import monotonic, sleep
from typing import Any, Final, NamedTuple

from wsgiserv.errors import BootError
from wsgiserv.ipc import MessageError, MessageReader, OutcomeWriter
from wsgiserv.master.control import Done
from wsgiserv.master.crash_report import describe_exit
from wsgiserv.master.signals import STOP_SIGNALS, SignalQueue, ignore_requests
from wsgiserv.master.spawn import fork_child
from wsgiserv.master.waiters import settle
from wsgiserv.net.listener import Listener
from wsgiserv.process import Ended, reap, send_signal

# The reason of a next master that a signal stopped: not a fault of its code.
TOLD_TO_STOP: Final = "it was told to stop"

# The environment is what survives execve(2) and means nothing to a program that does not know it.
_VARIABLE: Final = "WSGISERV_UPGRADE"
# The format of what the variable holds. "for", "pid", "pipe" and "version" are the same in all versions.
_VERSION: Final = 1
# A reason of ASCII fits the pipe (64 KiB): an old master that is stopped does not hold up the end of this process.
_MAX_REASON_LENGTH: Final = 32_000
# A process that has closed its pipe while it exits can be waited for within this time.
_EXIT_S: Final = 0.1
# A next master that neither serves nor fails (a configuration file that hangs) is killed after this time.
_START_TIMEOUT_S: Final = 180.0
# The time to exit for one that was told to stop at once, and for one that was killed.
_QUIT_TIMEOUT_S: Final = 3.0
_KILL_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True)
class Invocation:
    """How this process was started, so that the next master starts the same way.

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
        """Return how this process was started. Called before anything changes its environment."""
        # `sys.argv` lacks the interpreter's own options (-X, -W, -m). The path of the interpreter may be a link to
        # another Python by the time of the upgrade, which is what an upgrade of Python is.
        argv = [sys.executable or sys.orig_argv[0], *sys.orig_argv[1:]]
        return cls(argv, dict(environ), directory)


class OldMaster(OutcomeWriter):
    """The master that started this one. This process takes over everything that it inherited from it, or closes it.

    Attributes:
        pid: its process id.
        activated: True when its sockets came from the service manager, so that `bind` does not apply.
        handoff: the descriptors of the workers' handoff channel, receiving and sending end; or None.
    """

    def __init__(self, inherited: dict[str, Any]) -> None:
        super().__init__(inherited["pipe"])
        # A copy in a program that the application starts would hide from the old master that this one has ended.
        os.set_inheritable(inherited["pipe"], False)
        self.pid: int = inherited["pid"]
        # Read before `check_version`: another format may lack them.
        self.activated = bool(inherited.get("activated"))
        self.handoff: Sequence[int] | None = inherited.get("handoff")
        self._inherited = inherited

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> OldMaster | None:
        """Return the old master that the environment names, and remove the variable; None without one."""
        try:
            inherited = json.loads(environ.pop(_VARIABLE))
            # A child of the next master inherits the variable, but not the sockets.
            return cls(inherited) if inherited["for"] == getpid() else None
        except (ValueError, KeyError, TypeError, OSError):
            return None

    def check_version(self) -> None:
        """Raise BootError when the old master's wsgiserv passes on its resources in another format."""
        # Before anything is taken over: the old master goes on with all of it.
        version = self._inherited.get("version", _VERSION)
        if version != _VERSION:
            raise BootError(
                f"upgrade: the old master passes on its sockets in format {version}, this wsgiserv reads format "
                f"{_VERSION}. Restart the server instead."
            )

    def listeners(self, secure: bool) -> list[Listener]:
        """Return its listening sockets, which belong to this process from now on."""
        found = []
        for each in self._inherited["listeners"]:
            sock = socket(fileno=each["fd"])
            # They were inheritable for execve(2); the application's own programs must not get them.
            os.set_inheritable(sock.fileno(), False)
            found.append(Listener(sock, each["spec"], secure=secure, inherited=each["inherited"], path=each["path"]))
        return found

    def ready(self) -> None:
        """Report that this master serves, so that the old one shuts down."""
        self.tell({"ready": True})

    def failed(self, reason: str) -> None:
        """Report why this master ends, so that the old one goes on. Does nothing after `ready`."""
        self.tell({"ready": False, "reason": reason[:_MAX_REASON_LENGTH]})


class NewMaster:
    """The next master, from its fork until it serves or has failed.

    Args:
        pid: its process id.
        fd: the pipe that it reports through, owned from now on.

    Attributes:
        pid: its process id.
        ready: True when it serves.
        reason: why it failed; empty until then.
        end: how its process ended; None while that runs.
    """

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.ready = False
        self.reason = ""
        self.end: Ended | None = None
        self._reader = MessageReader(fd)

    @property
    def over(self) -> bool:
        """True when it serves or has failed."""
        return self.fileno() < 0

    def fileno(self) -> int:
        """Return the descriptor to poll until `over`; -1 then."""
        return self._reader.fileno()

    def read_report(self) -> bool:
        """Read its report; return True when that decides the upgrade. Called in every turn of the loop."""
        if self.over:
            return False
        try:
            messages, closed = self._reader.read()
        except MessageError as error:
            messages, closed = [{"reason": f"it has sent a corrupt message ({error})"}], True
        if not (messages or closed):
            return False
        self.close()
        outcome = messages[0] if messages else {"reason": self._exit_reason()}
        self.ready = outcome.get("ready") is True
        self.reason = "" if self.ready else str(outcome.get("reason"))
        return True

    def _exit_reason(self) -> str:
        """Return why the pipe closed without a report: how the process exited, if it did."""
        until = monotonic() + _EXIT_S
        # The kernel closes the pipe before it makes the process one to wait for.
        while not self.reap() and monotonic() < until:
            sleep(0.001)
        status = self.end.wait_status if self.end is not None else None
        if status is None:
            return "it ended without a report; its lines in the log say more"
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in STOP_SIGNALS:
            return TOLD_TO_STOP  # before it could catch the signal
        return f"it {describe_exit(status)} without a report; its lines in the log say more"

    def reap(self) -> bool:
        """Wait for its process without blocking; return True when that has exited."""
        # Not twice: the number may be another child's by then.
        self.end = self.end or reap(self.pid)
        return self.end is not None

    def stop(self, signal: Signals = SIGTERM) -> None:
        """Send ``signal`` to its process, unless that has exited."""
        if self.end is None:
            send_signal(self.pid, signal)

    def close(self) -> None:
        """Close the pipe. Also called in each worker."""
        if not self.over:
            self._reader.close()


class Inherited(NamedTuple):
    """The resources that a next master inherits.

    Attributes:
        listeners: the listening sockets.
        handoff: the descriptors of the workers' handoff channel, or None.
        activated: True when the sockets came from the service manager.
    """

    listeners: Sequence[Listener]
    handoff: tuple[int, int] | None
    activated: bool


class Upgrade:
    """The upgrades of one master, one at a time.

    Args:
        invocation: how this process was started; None where that is unknown, and an upgrade impossible.
        log: the error log.

    Attributes:
        new_master: the next master; None while there is none.
        requests: the callbacks of requested upgrades that have not begun.
    """

    def __init__(self, invocation: Invocation | None, log: logging.Logger) -> None:
        self.invocation = invocation
        self.new_master: NewMaster | None = None
        self.requests: list[Done] = []
        self._log = log
        self._waiters: list[Done] = []
        # Next masters whose processes have not been waited for: a failed one exits after its report.
        self._processes: list[NewMaster] = []
        # When to kill one that does not become ready, or was cancelled and does not exit; then, until when to wait.
        self._until = inf
        # The last signal to a next master that is to stop because this one stops; its reports are ignored from then on.
        self._cancelled_by: Signals | None = None

    @property
    def in_progress(self) -> bool:
        """True while a next master starts."""
        return self.new_master is not None and not self.new_master.over

    @property
    def is_pending(self) -> bool:
        """True from the request of an upgrade until its outcome."""
        return bool(self.requests) or self.in_progress

    def begin(self, done: Done, inherited: Inherited, signals: SignalQueue, before_exec: Callable[[], object]) -> None:
        """Start the next master, or wait for the one that starts already. Never raises.

        Args:
            done: called with the outcome.
            inherited: the resources of the next master.
            signals: this master's signals.
            before_exec: called in the child just before it becomes the next master.
        """
        if self.new_master is not None:
            # Two at once would both take the sockets, the pid file and the clients.
            self._log.info("upgrade: the next master (pid %d) is starting already", self.new_master.pid)
            self._waiters.append(done)
            return
        if self.invocation is None:
            self._log.error("WS1320 upgrade: impossible: wsgiserv does not know the command line of this server")
            done(False, "wsgiserv does not know the command line of this server")
            return
        try:
            self.new_master = _start(self.invocation, inherited, signals, before_exec)
        except OSError as error:
            self._log.error("WS1321 upgrade: cannot start the next master: %s", error.strerror)
            done(False, f"cannot start the next master: {error.strerror}")
            return
        self._processes.append(self.new_master)
        self._waiters.append(done)
        self._until = monotonic() + _START_TIMEOUT_S
        self._log.info("upgrade: the next master is starting (pid %d)", self.new_master.pid)

    def read_report(self, *, stops: bool) -> NewMaster | None:
        """Read the next master's report; return the next master once, when it serves or has failed.

        Args:
            stops: True when this master shuts down in either case, which the log then says.
        """
        new = self.new_master
        if new is None:
            return None
        is_decided = new.read_report()
        if self._cancelled_by is not None:
            return None
        if not is_decided:
            if self.in_progress and monotonic() > self._until:
                self._log.error(
                    "WS1322 upgrade: the next master (pid %d) is not ready after %g s: sending SIGKILL",
                    new.pid,
                    _START_TIMEOUT_S,
                )
                # Its pipe closes with it, which is read as its failure.
                new.stop(SIGKILL)
                self._until = inf
            return None
        if new.ready:
            # It stays `new_master`: while it lives, this master's workers hand their connections over to its workers.
            self._log.info("upgrade: the next master (pid %d) serves; this one shuts down", new.pid)
            self._settle(True, f"the next master serves (pid {new.pid})")
            return new
        if new.reason == TOLD_TO_STOP:
            self._log.info(
                "upgrade: the next master (pid %d) was told to stop; %s",
                new.pid,
                "this one stops, too" if stops else "this one and its workers go on",
            )
        else:
            self._log.error(
                "WS1323 upgrade failed; %s. The next master (pid %d): %s",
                "this master stops as well, as it was told" if stops else "this master and its workers go on",
                new.pid,
                new.reason,
            )
        # It may still run: after a corrupt message, or with a thread of a configuration file.
        new.stop()
        self.new_master = None
        self._settle(False, new.reason)
        return new

    def _settle(self, ok: bool, reason: str) -> None:
        self._until = inf
        settle(self._waiters, ok, reason)

    def cancel(self, *, at_once: bool, timeout_s: float) -> None:
        """Stop a next master that does not serve yet, because this one stops. May be called again, to hurry.

        Args:
            at_once: True to break off its workers' requests.
            timeout_s: the time that it has to finish them; then it is killed.
        """
        new, before = self.new_master, self._cancelled_by
        if new is None or not (self.in_progress or before):
            return
        signal = SIGQUIT if at_once else SIGTERM
        if before in (signal, SIGQUIT, SIGKILL):
            return
        if before is None:
            self._log.info("upgrade: the next master (pid %d) is stopped, too", new.pid)
        # Its clients are answered now; its own report, which may come for a while, is ignored.
        self._settle(False, "the server is stopping")
        self._cancelled_by = signal
        self._until = monotonic() + (_QUIT_TIMEOUT_S if at_once else timeout_s + _QUIT_TIMEOUT_S)
        new.stop(signal)

    def reap(self) -> list[int]:
        """Wait for next masters that have exited; return their process ids."""
        # Of all, not the newest alone: a failed one may exit after another has begun.
        ended = [each.pid for each in self._processes if each.reap()]
        self._processes = [each for each in self._processes if each.end is None]
        return ended

    def ends_by(self, now: float) -> float | None:
        """Return how long this master waits for the exit of a cancelled next master; None when it need not."""
        # A parent takes the exit of this process for the end of the server; in a container it is the end.
        new = self.new_master
        if new is None or self._cancelled_by is None or new.end is not None:
            return None
        if now >= self._until:
            if self._cancelled_by == SIGKILL:
                return None  # the kernel holds it: nothing more can be done
            self._log.error("WS1324 upgrade: the next master (pid %d) does not stop: sending SIGKILL", new.pid)
            self._cancelled_by = SIGKILL
            new.stop(SIGKILL)
            self._until = now + _KILL_TIMEOUT_S
        return self._until

    def close_in_child(self) -> None:
        """Close the pipe. Called in a worker."""
        if self.new_master is not None:
            self.new_master.close()


def _start(
    invocation: Invocation, inherited: Inherited, signals: SignalQueue, before_exec: Callable[[], object]
) -> NewMaster:
    """Fork and execute the next master; arguments as in `Upgrade.begin`. Raises OSError when the system refuses."""
    reader, writer = pipe()
    pid = fork_child(signals, partial(close, reader), partial(close, writer))
    if pid:
        close(writer)
        return NewMaster(pid, reader)
    try:
        # A signal to all processes of the server (pkill -USR1 wsgiserv) is meant for this master. Ignored, not caught:
        # that lasts over execve(2), until the next master catches it.
        ignore_requests()
        pthread_sigmask(SIG_SETMASK, ())
        # A hook's exception, of whatever kind, is the reason of a failed upgrade; see below.
        before_exec()
        environ = _environ(invocation, inherited, writer)
        try:
            chdir(invocation.directory)
        except FileNotFoundError:
            # A release directory that was removed: the next master starts in this one's, and knows its name.
            environ["PWD"] = invocation.directory
        execve(invocation.argv[0], list(invocation.argv), environ)
    except BaseException as error:
        try:
            OutcomeWriter(writer).tell({"ready": False, "reason": f"cannot execute it: {error}"})
        finally:
            _exit(127)  # nothing of this process's may run: it is a copy of the old master
    raise AssertionError("execve returned")


def _environ(invocation: Invocation, inherited: Inherited, writer: int) -> dict[str, str]:
    """Return the next master's environment, with the descriptors that it inherits. Called in its process."""
    listeners, handoff, activated = inherited
    for fd in (writer, *(handoff or ()), *(listener.fileno() for listener in listeners)):
        os.set_inheritable(fd, True)
    # The sockets of the service manager are among the listeners.
    removed = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", _VARIABLE)
    environ = {name: value for name, value in invocation.environ.items() if name not in removed}
    environ[_VARIABLE] = json.dumps(
        {
            "version": _VERSION,
            "for": getpid(),
            "pid": os.getppid(),
            "pipe": writer,
            "activated": activated,
            "handoff": handoff,
            "listeners": [
                {"fd": each.fileno(), "spec": each.spec, "inherited": each.inherited, "path": each.path}
                for each in listeners
            ],
        }
    )
    # The watchdog is meant for the main process, which this one becomes.
    if "WATCHDOG_PID" in environ:
        environ["WATCHDOG_PID"] = str(getpid())
    return environ
