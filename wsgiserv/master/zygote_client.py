"""Runs the zygotes from the master's side: forks them, asks them for workers, hears their answers.

The master never waits for a zygote: a request lies in its socket while it loads the application. Meanwhile the worker
has a `WorkerHandle` with the process id 0; no system call may ever get it: 0 is the master's own process group. A
signal for such a worker goes to the zygote, or cancels the request.
"""

from __future__ import annotations

import logging
from _socket import MSG_DONTWAIT, socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import P_PID, WEXITED, WNOHANG, WNOWAIT, close, waitid
from signal import SIGABRT, SIGKILL, Signals
from time import monotonic, sleep
from typing import Any, Final, Literal, NamedTuple

from wsgiserv.boot import WorkerBoot
from wsgiserv.errors import ExitStatus
from wsgiserv.hooks import failure_of, report_failure
from wsgiserv.ipc import MessageError, decode, encode, packet_pair, send_packet, write_all
from wsgiserv.master.crash_report import describe_exit
from wsgiserv.master.generation import Generation
from wsgiserv.master.hook_worker import pack
from wsgiserv.master.spawn import ForkedChild, Parent, be_worker, fork_child, new_handle, set_title
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.master.zygote import LONGEST_MESSAGE_BYTES, ZygoteBoot, live_as_zygote
from wsgiserv.process import reap, send_signal, unnamed_file
from wsgiserv.scoreboard import Slot
from wsgiserv.user_code import is_a

# A process that has been killed is gone after this long, or the kernel holds it.
_GONE_S: Final = 1.0
# What the master reads of one zygote in a turn: one that writes without end delays nothing. A socket holds some 280.
_MOST_MESSAGES: Final = 512


class Answer(NamedTuple):
    """A zygote's answer to the request for a worker.

    Attributes:
        worker: the worker.
        state: ``spawned`` (it has its process, and ``worker.pid``), ``cancelled`` (the request was withdrawn in time)
            or ``failed``.
        reason: of ``failed``; it continues a sentence about the zygote: ``was killed by SIGKILL``.
    """

    worker: WorkerHandle
    state: Literal["spawned", "cancelled", "failed"]
    reason: str = ""


@dataclass(eq=False)
class Zygote:
    """One zygote.

    Attributes:
        pid: its process id.
        sock: the line to it, owned from now on.
        generation: the generation of its workers.
        log: the error log.
        is_new_child: whether a process id is a child of the master, and no worker yet.
        loaded: whether it has loaded the application.
        over: whether it has exited, or has been ended.
        is_outdated: whether another has taken its place: it ends when it has answered all.
        aborted: whether it has been sent SIGABRT, or SIGKILL: it does not load the application in time.
        asked: the requested workers without an answer, by age.
        began_at: when it was forked, ``time.monotonic()`` seconds.
        environ: what `pre_fork` has changed in the environment since then; None: taken out.
        told: the attributes that the log says cannot be pickled; of all zygotes.
        boards: how many boards of slots it knows.
    """

    pid: int
    sock: socket
    generation: Generation
    log: logging.Logger
    is_new_child: Callable[[int], bool]
    loaded: bool = False
    over: bool = False
    is_outdated: bool = False
    aborted: bool = False
    asked: dict[int, WorkerHandle] = field(default_factory=dict)
    began_at: float = field(default_factory=monotonic)
    environ: dict[str, str | None] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    # What the socket does not take at once: a hundred requests and more.
    unsent: deque[tuple[dict[str, Any], list[int]]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.boards = len(self.generation.pool.boards)
        self.sock.setblocking(False)

    def request(self, worker: WorkerHandle, place: tuple[int, int]) -> None:
        """Ask for ``worker``'s process. Raises OSError when there is no descriptor left.

        Args:
            worker: without a process; it gets its pipes.
            place: where its slot is.
        """
        ready = worker.open_pipes()
        fds = [ready]
        message = {"do": "spawn", "age": worker.age, "spawned_at": worker.spawned_at, "slot": place}
        if (changes := self._changes_for(worker)) >= 0:
            fds.append(changes)
            message["changes"] = True
        if worker.crash_dump is not None:
            fds.append(worker.crash_dump.fd)
        self.asked[worker.age] = worker
        self.unsent.append((message, fds))
        self._send()

    def _changes_for(self, worker: WorkerHandle) -> int:
        """Return a file with what `pre_fork` has changed since this zygote's fork; -1 when that is nothing."""
        attributes = worker.view.attributes() if worker.view is not None else {}
        if not (attributes or self.environ):
            return -1
        # Through a file: a message is short, and attributes may be long.
        data, lost = pack(attributes, self.environ)
        for name in lost:
            if name not in self.told:
                self.told.add(name)
                self.log.warning(
                    "WS1105 pre_fork: worker.%s cannot be pickled (%s): with preload_app the worker does not have it; "
                    "make it in post_fork (logged once)",
                    name,
                    type(attributes[name]).__name__,
                )
        try:
            fd = unnamed_file("wsgiserv-pre-fork")
        except OSError:
            worker.close_pipes()
            raise
        write_all(fd, data)
        return fd

    def reopen_logs(self) -> None:
        """Have it reopen its log, for its future workers."""
        # Behind the requests in the queue: workers forked before it get SIGUSR1 themselves.
        if not self.over:
            self.unsent.append(({"do": "reopen_logs"}, []))
            self._send()

    def _send(self) -> None:
        while self.unsent:
            message, fds = self.unsent[0]
            try:
                send_packet(self.sock, encode(message), fds)
            except BlockingIOError:
                return  # its next answer says that there is room
            except OSError:
                pass  # it has exited, or been ended; its workers fail when it is reaped
            # The kernel holds its own reference. The crash dump's descriptor is the handle's.
            for ours in fds[: 2 if message.get("changes") else 1]:
                close(ours)
            self.unsent.popleft()

    def hear(self) -> list[Answer]:
        """Return its answers. Called at every turn of the master's loop."""
        # Without regard to poll(2)'s answer: a read that finds nothing costs as little.
        answers: list[Answer] = []
        if self.over:
            return answers
        is_corrupt = False
        for _ in range(_MOST_MESSAGES):
            try:
                data = self.sock.recv(LONGEST_MESSAGE_BYTES, MSG_DONTWAIT)
            except ConnectionResetError:
                # It has exited with requests unread. The kernel says so once, and before its last answers.
                continue
            except OSError:
                break  # nothing is there
            if not data:
                break  # it has exited: `reap` tells how
            try:
                answer = self._understand(decode(data))
            except MessageError as error:
                if not is_corrupt:
                    is_corrupt = True
                    # At once, then on: behind the garbage may be an answer about a worker that has been let go.
                    send_signal(self.pid, SIGKILL)
                    self.log.error(
                        "WS1333 zygote %d: corrupt message on its socket (%s): the zygote is replaced. The "
                        "application, or a library of its own, writes to descriptors that it has not opened.",
                        self.pid,
                        error,
                    )
                continue
            if answer is not None:
                answers.append(answer)
        if is_corrupt:
            self.end()
        self._send()
        if self.is_outdated and not self.asked:
            self.end()
        return answers

    def _understand(self, message: dict[str, Any]) -> Answer | None:
        """Return a message's meaning for a worker. Raises MessageError, and changes nothing then."""
        state, age, pid = message.get("state"), message.get("age"), message.get("pid")
        if state == "loaded":
            self.loaded = True
            self.log.info("zygote %d: application loaded in %.2f s", self.pid, monotonic() - self.began_at)
            return None
        # Not isinstance: True is an int, and would be the worker of age 1.
        worker = self.asked.get(age) if type(age) is int else None
        if worker is None:
            raise MessageError(f"about a worker that was not asked for: {str(message)[:80]}")
        if state == "spawned":
            # The application runs in the zygote and can write here: a forged pid must not make the master signal, or
            # wait for, another process.
            if type(pid) is not int or not self.is_new_child(pid):
                raise MessageError(f"not the process of a new worker: {str(message)[:80]}")
            worker.pid = pid
            answer = Answer(worker, "spawned")
        elif state == "cancelled":
            answer = Answer(worker, "cancelled")
        elif state == "fork_failed":
            answer = Answer(worker, "failed", f"cannot fork a worker: {str(message.get('error'))[:200]}")
        else:
            raise MessageError(f"not a message of a zygote: {str(message)[:80]}")
        del self.asked[worker.age]
        return answer

    def signal(self, worker: WorkerHandle, signal: Signals, reason: str) -> None:
        """Send the zygote the signal for a worker without a process: SIGABRT, SIGKILL."""
        if self.over or (signal == SIGABRT and self.aborted):
            return
        # A second SIGABRT would interrupt the report of the first.
        self.aborted = True
        self.log.error(
            "WS1334 zygote %d: its worker of age %d %s: sending %s", self.pid, worker.age, reason, signal.name
        )
        send_signal(self.pid, signal)

    def end(self) -> None:
        """End it; its workers are the master's children, and stay."""
        # SIGKILL: it has nothing to finish, and the application may have handlers of its own for other signals.
        if not self.over:
            send_signal(self.pid, SIGKILL)
            self.close()

    def close(self) -> None:
        """Close the line. Also called in each child of the master."""
        self.over = True
        self.sock.close()
        self._send()  # nothing goes out any more, but the descriptors in the queue are closed


class ZygoteClients:
    """The zygotes of one master.

    Args:
        parent: the master's values.

    Attributes:
        zygotes: all zygotes, until they are reaped.
        inherits_orphans: whether there has been any: then this process is a subreaper.
    """

    def __init__(self, parent: Parent) -> None:
        self.zygotes: list[Zygote] = []
        self.inherits_orphans = False
        self._parent = parent
        self._told: set[str] = set()
        self._log = parent.log
        self._server = parent.server

    def fds(self) -> list[int]:
        """Return the descriptors to poll."""
        return [zygote.sock.fileno() for zygote in self.zygotes if not zygote.over]

    def request(
        self,
        worker: WorkerHandle,
        generation: Generation,
        slot: Slot,
        leave: Callable[[], None],
        changes: Mapping[str, str | None],
    ) -> None:
        """Ask the generation's zygote for a worker; fork that zygote first where there is none.

        Args:
            worker: without a process.
            generation: its generation.
            slot: its row of the scoreboard.
            leave: closes, in the zygote, the master's descriptors.
            changes: what `pre_fork` has just changed in the environment; None: taken out.

        Raises:
            OSError: the system does not make a process, or a descriptor.
            ForkedChild: in the zygote.
        """
        # As with gunicorn they reach this worker and all later ones. A zygote that is forked below inherits them.
        for each in self.zygotes:
            each.environ.update(changes)
        mine = (each for each in self.zygotes if each.generation is generation)
        zygote = next((each for each in mine if not (each.over or each.aborted or each.is_outdated)), None)
        # It was forked before the new board was mapped.
        if zygote is not None and zygote.boards < len(generation.pool.boards):
            self._log.info("zygote %d: replaced: more workers than ever, and it lacks their slots", zygote.pid)
            zygote.is_outdated = True
            zygote = None
        if zygote is None:
            zygote = self._fork_zygote(generation, leave)
            self.zygotes.append(zygote)
        zygote.request(worker, generation.pool.place(slot))

    def _fork_zygote(self, generation: Generation, leave: Callable[[], None]) -> Zygote:
        ours, theirs = packet_pair()
        pid = fork_child(self._parent.signals, ours.close, theirs.close)
        if pid:
            theirs.close()
            self.inherits_orphans = True
            self._log.debug("zygote %d forked", pid)
            return Zygote(pid, ours, generation, self._log, self._is_new_child, told=self._told)
        ours.close()
        leave()
        boot = ZygoteBoot(parent=self._parent, generation=generation, sock=theirs)

        def live(worker_main: Callable[[WorkerBoot], int]) -> int:
            set_title("zygote", boot.parent.server.proc_name)
            return be_worker(live_as_zygote(boot), worker_main)

        raise ForkedChild(live)

    def _is_new_child(self, pid: int) -> bool:
        """Whether ``pid`` is a child of this process, and no worker yet: it will be sent signals."""
        # 0 and -1 would be process groups for kill(2).
        if pid <= 1 or pid in self._server.WORKERS or any(pid == zygote.pid for zygote in self.zygotes):
            return False
        try:
            # WNOWAIT leaves its status to `reap`, if it has exited already.
            waitid(P_PID, pid, WEXITED | WNOHANG | WNOWAIT)
        except (ChildProcessError, OverflowError):
            return False
        return True

    def close_in_child(self) -> None:
        """Close the lines to the zygotes."""
        for zygote in self.zygotes:
            zygote.close()

    def zygote_of(self, worker: WorkerHandle) -> Zygote | None:
        """Return the zygote with an open request for ``worker``."""
        return next((each for each in self.zygotes if each.asked.get(worker.age) is worker), None)

    def hear(self) -> list[Answer]:
        """Return the zygotes' answers."""
        return [answer for zygote in self.zygotes for answer in zygote.hear()]

    def reap(self) -> list[Answer]:
        """Note exited zygotes; return their last answers."""
        answers: list[Answer] = []
        for zygote in list(self.zygotes):  # on_exit removes it
            if end := reap(zygote.pid):
                answers += self.on_exit(zygote, end.wait_status)
        return answers

    def on_exit(self, zygote: Zygote, wait_status: int | None) -> list[Answer]:
        """Note that ``zygote`` has been reaped; return its last answers."""
        answers = zygote.hear()
        self.zygotes.remove(zygote)
        how = describe_exit(wait_status)
        # A zygote that cannot load the application has reported that to each worker's pipe, with the reason.
        is_known = zygote.over or (not zygote.loaded and how == describe_exit(ExitStatus.APPLICATION << 8))
        if is_known:
            self._log.debug("zygote %d %s", zygote.pid, how)
        else:
            self._log.error("WS1335 zygote %d %s: the workers stay; the next worker gets a new zygote", zygote.pid, how)
        zygote.close()
        # For the hook a worker of age 0: the application's import may have left something under the zygote's process
        # id (a file of Prometheus gauges) to be removed.
        settings = self._server.settings
        worker = new_handle(self._parent, settings, 0, zygote.generation.number, zygote.began_at, zygote.pid)
        failure = failure_of(settings.child_exit, self._server, worker.view)
        if failure is not None and is_a(failure, AttributeError):
            # Most likely what pre_fork hangs on each worker: gunicorn calls the hook for workers alone.
            self._log.info("the hook child_exit, called for the end of a zygote (age 0), raised %s", failure)
        else:
            report_failure(self._log, "child_exit", failure)
        lost = [Answer(worker, "failed", how) for worker in zygote.asked.values()]
        zygote.asked.clear()
        return [*answers, *lost]

    def reopen_logs(self) -> None:
        """Have all zygotes reopen their logs."""
        for zygote in self.zygotes:
            zygote.reopen_logs()

    def keep_generation(self, number: int) -> None:
        """End the zygotes of all other generations."""
        # Their settings are not in force any more, and each holds a copy of an application.
        for zygote in self.zygotes:
            if zygote.generation.number != number:
                zygote.end()

    def dismiss(self) -> list[Answer]:
        """End the zygotes before the workers leave, and wait for their processes; return their last answers."""
        # They hold the listening sockets, too: a client that connects when the workers have closed theirs would wait
        # in a backlog that nothing serves.
        # One with an open request ends after its answer, in `hear`.
        for zygote in self.zygotes:
            zygote.is_outdated = True
        return self.hear() + self._reap_ended()

    def close(self) -> None:
        """End all zygotes, and wait for their processes. At the end of the master."""
        for zygote in self.zygotes:
            zygote.end()
        self._reap_ended()

    def _reap_ended(self) -> list[Answer]:
        answers: list[Answer] = []
        until = monotonic() + _GONE_S
        while any(zygote.over for zygote in self.zygotes) and monotonic() < until:
            sleep(0.001)
            answers += self.reap()
        return answers
