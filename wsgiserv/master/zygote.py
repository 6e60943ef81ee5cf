"""Runs the zygote: the process to load the application once, and to be copied into each worker (``preload_app``).

A worker is the zygote's grandchild: the child between them exits at once, and the kernel gives the worker to the
nearest subreaper above, the master (prctl(2), PR_SET_CHILD_SUBREAPER). So the master waits for it, and
for all others, in one way. It begins only when its process id has been told: no worker exists unknown to the master,
whenever the zygote is killed.
"""

from __future__ import annotations

import gc
import os
import threading
from _socket import MSG_DONTWAIT, socket
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from os import _exit, close, getpid, getppid, waitpid, waitstatus_to_exitcode
from select import POLLERR
from signal import SIG_DFL, SIGABRT, SIGCHLD, SIGKILL, signal
from traceback import extract_stack, format_list
from types import FrameType
from typing import Any, Final, NoReturn

from wsgiserv.boot import ReadinessWriter, WorkerBoot
from wsgiserv.errors import ApplicationError, ConfigError, ExitStatus
from wsgiserv.ipc import decode, encode, packet_pair, receive_packet, wait_for
from wsgiserv.logs.error import close_logs_in_child, reopen_error_log
from wsgiserv.master.generation import Generation
from wsgiserv.master.hook_worker import unpack
from wsgiserv.master.signals import MASTER_SIGNALS
from wsgiserv.master.spawn import Parent, new_handle, worker_boot
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.privileges import set_home
from wsgiserv.process import add_child_cleanup, flush_standard_streams, forget_cleanups, fork, unblock_last
from wsgiserv.tracebacks import IMPORTLIB, OUR_DIRECTORY, describe_error
from wsgiserv.wording import counted

_HEARD_BY_ALL: Final = tuple(number for number in MASTER_SIGNALS if number != SIGCHLD)
# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

LONGEST_MESSAGE_BYTES: Final = 4096
_MOST_FDS: Final = 3


def become_subreaper() -> bool:
    """Adopt orphans among this process's descendants; return whether the kernel can."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> bool:
    try:
        # Here: a server without preload_app does without its import. Python has no prctl().
        import ctypes

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):  # no libffi; not Linux
        return False


@dataclass(kw_only=True)
class ZygoteBoot:
    """The values a zygote starts with, made by the master just before the fork.

    Attributes:
        parent: the master's values.
        generation: its workers' generation; its `preload` loads the application.
        sock: its end of the line to the master (SOCK_SEQPACKET).
    """

    parent: Parent
    generation: Generation
    sock: socket

    def close_in_child(self) -> None:
        """Close the zygote's descriptors. Called in a child of the application."""
        self.sock.close()
        close(self.parent.lifeline[0])
        for listener in self.generation.listeners:
            listener.close()
        if self.parent.server.handoff is not None:
            self.parent.server.handoff.close()


def live_as_zygote(boot: ZygoteBoot) -> WorkerBoot:
    """Load the application, then spawn workers at the master's requests. Called in the zygote's process.

    Returns:
        in each worker's process, its values. Never in the zygote: its process ends here.
    """
    status: int = ExitStatus.BOOT
    try:
        add_child_cleanup(boot.close_in_child)
        add_child_cleanup(close_logs_in_child)
        _prctl(_PR_SET_PDEATHSIG, SIGKILL)  # an import that hangs would never see the end of the line
        # The master may have ended before that call, and no signal comes then.
        if getppid() != boot.parent.server.pid:
            _exit(ExitStatus.OK)
        _ignore_signals(boot)
        unblock_last()
        application = _load(boot)
        _ignore_signals(boot)  # again: the application may have its own handlers, for its workers
        worker = _serve(boot, application)
        if worker is not None:
            return worker
        status = ExitStatus.OK
    except Exception:
        boot.parent.log.critical("WS1330 zygote %d: exits: an error of the server itself", getpid(), exc_info=True)
    flush_standard_streams()
    # Not sys.exit: the application's exit handlers are for its workers.
    _exit(status)


def _ignore_signals(boot: ZygoteBoot) -> None:
    def ignore(number: int, frame: FrameType | None) -> None:
        """A terminal, or systemd, tells all processes of the server; the master decides for the zygote."""

    def abort(number: int, frame: FrameType | None) -> None:
        boot.parent.log.critical("WS1331 zygote %d: aborted while it was here:\n%s", getpid(), _where(frame))
        _exit(ExitStatus.BOOT)

    for number in _HEARD_BY_ALL:
        signal(number, ignore)  # not SIG_IGN, which programs that the application starts would inherit
    signal(SIGABRT, abort)


def _where(frame: FrameType | None) -> str:
    """Return the stack above the server's own frames, and without those of the import system."""
    # Where an import hangs, these frames are the application's: the line to look at comes last.
    stack = list(extract_stack(frame))
    own = max((n for n, each in enumerate(stack) if each.filename.startswith(OUR_DIRECTORY)), default=-1)
    users = [each for each in stack[own + 1 :] if not each.filename.startswith(IMPORTLIB)]
    return "".join(format_list(users or stack)).rstrip()


def _load(boot: ZygoteBoot) -> Callable[..., Any]:
    """Return the application. When it cannot be loaded, report the requested workers failed, and exit."""
    preload = boot.generation.preload
    assert preload is not None
    gc.freeze()  # as in a worker: what is inherited is not searched, by eventlet for one, which replaces locks
    try:
        set_home(boot.generation.settings, os.environ)
        application = preload()
    except (ApplicationError, ConfigError, OSError) as error:
        status = ExitStatus.BOOT if isinstance(error, OSError) else error.exit_status
        _refuse(boot, str(error), getattr(error, "traceback", ""), status)
    names = threads_left_behind()
    if names:
        boot.parent.log.warning(
            "WS1332 zygote: the application has started %s while it was loaded (%s): threads stay behind in the "
            "zygote, the workers do not have them. Start them in post_worker_init, or at the first request; or leave "
            "preload_app out.",
            counted(len(names), "thread") if len(names) > 1 else "a thread",
            ", ".join(names),
        )
    # What is there now is no garbage, and need not be looked at: that would write into shared pages, and copy them.
    gc.collect()
    gc.freeze()
    return application


def threads_left_behind() -> Sequence[str]:
    """Return the names of the other threads of this process."""
    try:
        native = set(map(int, os.listdir("/proc/self/task")))
    except (OSError, ValueError):
        return ()
    native.discard(getpid())
    # Greenlets are in the workers, too. gevent's and eventlet's stand-ins for the main thread have no native_id.
    return [each.name for each in threading.enumerate() if getattr(each, "native_id", None) in native]


def _refuse(boot: ZygoteBoot, reason: str, traceback: str, status: int) -> NoReturn:
    """Report each requested worker as failed, as the worker itself would, and exit; there is one at least."""
    # Wait for the first request only: the master forks a zygote for a worker. Then the zygote exits, and the master
    # decides whether to try again.
    flags, is_open = 0, True
    with suppress(OSError):  # the master's end is closed, or no request is left
        while is_open:
            message, fds = _receive(boot.sock, flags)
            is_open = bool(message)
            if fds:
                flags = MSG_DONTWAIT
                ReadinessWriter(fds[0]).report("failed", reason, traceback, status)
                for fd in fds:
                    close(fd)
    flush_standard_streams()
    _exit(ExitStatus.APPLICATION)


def _receive(sock: socket, flags: int = 0) -> tuple[dict[str, Any], list[int]]:
    """Return the master's next message with its descriptors; an empty message when the master has gone."""
    while True:
        try:
            data, fds, _ = receive_packet(sock, LONGEST_MESSAGE_BYTES, _MOST_FDS, flags)
            return decode(data) if data else {}, fds
        except ConnectionResetError:
            return {}, []  # the end of a master that was killed, and has not read all yet
        except BlockingIOError:
            if flags & MSG_DONTWAIT:
                raise
        # The application has set O_NONBLOCK on a descriptor of ours: gevent does for each that it makes a socket of.
        wait_for(sock.fileno(), None)


def _serve(boot: ZygoteBoot, application: Callable[..., Any]) -> WorkerBoot | None:
    """Answer the master's requests. Return in a worker its values, in the zygote None when the master has gone."""
    _tell(boot.sock, {"state": "loaded"})
    while True:
        message, fds = _receive(boot.sock)
        if not message:
            return None
        if message["do"] == "reopen_logs":
            reopen_error_log()  # a worker inherits the descriptors as they are at its fork
            continue
        if _spawn(boot.sock, message["age"], fds[0]):
            boot.sock.close()
            return _become_worker(boot, application, message, fds)
        for fd in fds:
            close(fd)


def _tell(sock: socket, message: dict[str, Any]) -> bool:
    try:
        sock.send(encode(message))
    except OSError:
        return False
    return True


def _spawn(sock: socket, age: int, ready: int) -> bool:
    """Make the process of a worker, and tell the master; True in the worker, after the master knows it."""
    # pipe(7): the writing end has POLLERR when no reader is left. The request may have lain in the socket for minutes.
    if wait_for(ready, 0, POLLERR):
        _tell(sock, {"state": "cancelled", "age": age})  # the master has closed its end of the readiness pipe
        return False
    try:
        ours, theirs = packet_pair()
        with closing(ours), closing(theirs):
            child = fork()
            if child == 0:
                _leave_zygote(ours, theirs)
                return True
            theirs.close()
            _tell_spawned(sock, age, child, ours)
    except OSError as error:
        _tell(sock, {"state": "fork_failed", "age": age, "error": error.strerror})
    return False


def _tell_spawned(sock: socket, age: int, child: int, line: socket) -> None:
    """Wait for the worker's process id, tell it the master, and let the worker begin."""
    # The child between them ends first: from then on the worker is the master's child, and the master can wait for it.
    status = _wait(child)
    line.settimeout(None)  # the application may have set a default for new sockets
    pid = int(line.recv(32) or 0) if status == 0 else 0
    if not pid:
        reason = os.strerror(status) if status > 0 else "it was killed at once"
        _tell(sock, {"state": "fork_failed", "age": age, "error": reason})
    elif _tell(sock, {"state": "spawned", "age": age, "pid": pid}):
        with suppress(OSError):  # it has been killed; the master will see
            line.send(b"!")


def _leave_zygote(ours: socket, line: socket) -> None:
    """In the child: fork the worker, and exit. In the worker: tell its pid, and wait until the master knows it."""
    try:
        # Else the worker would hold the zygote's end, and never see its end of file.
        ours.close()
        if fork():
            _exit(ExitStatus.OK)
    except OSError as error:
        _exit(error.errno or ExitStatus.BOOT)
    # The zygote's handlers would swallow a signal that the master sends before the worker has its own.
    for number in (*_HEARD_BY_ALL, SIGABRT):
        signal(number, SIG_DFL)
    # It has touched nothing yet: if the zygote is killed meanwhile, the worker reads the end of file, and exits.
    try:
        line.settimeout(None)
        line.send(b"%d" % getpid())
        told = line.recv(1)
    except OSError:  # the zygote has been killed
        told = b""
    if not told:
        _exit(ExitStatus.OK)
    forget_cleanups()  # the zygote's; the worker adds its own


def _wait(child: int) -> int:
    try:
        return waitstatus_to_exitcode(waitpid(child, 0)[1])
    except ChildProcessError:  # the application ignores SIGCHLD, or waits for all children itself
        return 0


def _become_worker(
    boot: ZygoteBoot, application: Callable[..., Any], message: dict[str, Any], fds: Sequence[int]
) -> WorkerBoot:
    parent, generation, age = boot.parent, boot.generation, message["age"]
    parent.server.worker_age = age
    handle = new_handle(parent, generation.settings, age, generation.number, message["spawned_at"], getpid())
    slot = generation.pool.slot(*message["slot"])
    ready, *others = fds
    if message.get("changes"):
        _take_changes(parent, handle, others.pop(0))
    worker = worker_boot(parent, generation, handle, slot, ready, others[0] if others else None)
    # Not in the generation, which outlives it: the end of a worker lets its application be collected.
    worker.application = application
    return worker


def _take_changes(parent: Parent, handle: WorkerHandle, fd: int) -> None:
    """Take over what `pre_fork` has changed in the master since the zygote was forked: attributes, environment."""
    with open(fd, "rb") as file:
        file.seek(0)
        attributes, failures = unpack(file.read(), os.environ)
    vars(handle.view).update(attributes)
    for name, error in failures.items():
        parent.log.warning(
            "WS1106 pre_fork: worker.%s cannot be unpickled in worker %d: %s; make it in post_fork",
            name,
            handle.pid,
            describe_error(error),
        )
