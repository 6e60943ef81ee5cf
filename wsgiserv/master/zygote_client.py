"""The zygotes as the master sees them, and the workers that they have been asked for.

Owns: `Nursery`: the zygotes' processes, the line to each, the workers that are not born yet.
Must not know: what a zygote does inside (see `zygote`), when and why a worker is made.

The master never waits for a zygote: a request lies in its socket while it loads the application. Meanwhile the worker
has a `WorkerHandle` with the process id 0, which no system call may ever be given: 0 is the master's own process
group. What the master would do to such a worker is done to the zygote, or to the request.
"""

from __future__ import annotations

import logging
from _socket import MSG_DONTWAIT, socket
from collections import deque
from collections.abc import Callable
from os import P_PID, WEXITED, WNOHANG, WNOWAIT, close, pipe, waitid
from signal import SIGABRT, SIGKILL, Signals
from time import monotonic, sleep
from typing import Any, Final, NamedTuple

from wsgiserv.boot import ReadinessReader
from wsgiserv.errors import ExitStatus
from wsgiserv.hooks import call_hook
from wsgiserv.ipc import MessageError, decode, encode, packet_pair, send_packet
from wsgiserv.master.classify_exit import died_how
from wsgiserv.master.crash_dump_file import CrashDumpFile
from wsgiserv.master.generation import Generation
from wsgiserv.master.signals import SignalQueue
from wsgiserv.master.spawn import ForkedChild, be_worker, fork_child, set_title
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.master.zygote import ZygoteBoot, live_as_zygote
from wsgiserv.process import reap, send_signal
from wsgiserv.scoreboard import Slot

__all__ = ["Cancelled", "Failed", "Nursery", "Spawned", "Zygote"]

# A process that has been killed is gone after this long, or the kernel holds it.
_GONE_S: Final = 1.0
# What the master reads of one zygote in a turn: one that writes without end delays nobody. A socket holds some 280.
_MOST_MESSAGES: Final = 512
_LONGEST_MESSAGE: Final = 4096


class Spawned(NamedTuple):
    """The worker has its process, and ``worker.pid``."""

    worker: WorkerHandle


class Cancelled(NamedTuple):
    """The worker will not be: its request was withdrawn in time."""

    worker: WorkerHandle


class Failed(NamedTuple):
    """The worker will not be. ``because`` continues a sentence about the zygote: ``was killed by SIGKILL``."""

    worker: WorkerHandle
    because: str


class Zygote:
    """One zygote.

    Attributes:
        pid: its process id.
        generation: the serial number of its generation.
        began_at: when it was forked, ``time.monotonic()`` seconds.
        boards: how many boards of slots it knows.
        loaded: whether it has loaded the application.
        over: whether it has died, or has been ended.
        is_outdated: whether another has taken its place: it ends when it has answered all.
        aborted: whether it has been sent SIGABRT, or SIGKILL: it does not load the application in time.
        asked: the workers that it has been asked for and has not answered about, by age.
    """

    def __init__(
        self,
        pid: int,
        sock: socket,
        generation: Generation,
        log: logging.Logger,
        is_new_child: Callable[[int], bool],
    ) -> None:
        self.pid = pid
        self._is_new_child = is_new_child
        self.generation = generation.number
        self.boards = generation.pool.boards
        self.loaded = False
        self.over = False
        self.is_outdated = False
        self.asked: dict[int, WorkerHandle] = {}
        self.began_at = monotonic()
        self._log = log
        self.aborted = False
        self._sock = sock
        # What the socket does not take at once: a hundred requests and more.
        self._unsent: deque[tuple[dict[str, Any], tuple[int, ...], int]] = deque()
        sock.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to poll; -1 when there is none any more."""
        return self._sock.fileno()

    def request(self, worker: WorkerHandle, place: tuple[int, int]) -> None:
        """Ask for ``worker``'s process. Raises OSError when there is no descriptor left.

        Args:
            worker: without a process; it gets its pipe and its last words.
            place: where its slot is.
        """
        reader, writer = pipe()
        worker.reader = ReadinessReader(reader)
        worker.last_words = CrashDumpFile.make()
        fds = (writer,) if worker.last_words is None else (writer, worker.last_words.fd)
        message = {"do": "bear", "age": worker.age, "spawned_at": worker.spawned_at, "slot": place}
        self.asked[worker.age] = worker
        self._unsent.append((message, fds, writer))
        self._send()

    def reopen_logs(self) -> None:
        """Have it reopen its log, which its workers inherit."""
        self._unsent.append(({"do": "reopen_logs"}, (), -1))
        self._send()

    def _send(self) -> None:
        while self._unsent:
            message, fds, writer = self._unsent[0]
            if not self.over:
                try:
                    send_packet(self._sock, encode(message), fds, MSG_DONTWAIT)
                except BlockingIOError:
                    return  # its next answer says that there is room
                except OSError:
                    pass  # it has died; who waits is told when it is reaped
            if writer >= 0:
                close(writer)
            self._unsent.popleft()

    def hear(self) -> list[Spawned | Cancelled | Failed]:
        """Return what it has answered. Called at every turn of the master's loop."""
        news: list[Spawned | Cancelled | Failed] = []
        if self.over:
            return news
        is_corrupt = False
        for _ in range(_MOST_MESSAGES):
            try:
                data = self._sock.recv(_LONGEST_MESSAGE, MSG_DONTWAIT)
            except OSError:
                break
            if not data:
                break
            try:
                each = self._understand(decode(data))
            except MessageError as error:
                if not is_corrupt:
                    is_corrupt = True
                    # At once, then on: behind the garbage may be word of a worker that has been let go.
                    send_signal(self.pid, SIGKILL)
                    self._log.error(
                        "zygote %d: corrupt message on its socket (%s): the zygote is replaced. The application, or "
                        "a library of its own, writes to descriptors that it has not opened.",
                        self.pid,
                        error,
                    )
                continue
            if each is not None:
                news.append(each)
        if is_corrupt:
            self.end()
        self._send()
        if self.is_outdated and not self.asked:
            self.end()
        return news

    def _understand(self, message: dict[str, Any]) -> Spawned | Cancelled | Failed | None:
        """Return what a message says of a worker. Raises MessageError, and has changed nothing then."""
        state = message.get("state")
        if state == "loaded":
            self.loaded = True
            took_s = monotonic() - self.began_at
            self._log.info("the zygote %d has loaded the application in %.2f s", self.pid, took_s)
            return None
        age = message.get("age")
        worker = self.asked.get(age) if type(age) is int else None
        if worker is None:
            raise MessageError(f"about a worker that was not asked for: {str(message)[:80]}")
        assert type(age) is int
        if state == "born":
            pid = message.get("pid")
            if type(pid) is not int or not self._is_new_child(pid):
                raise MessageError(f"not the process of a new worker: {str(message)[:80]}")
            del self.asked[age]
            worker.pid = pid
            return Spawned(worker)
        if state == "withdrawn":
            del self.asked[age]
            return Cancelled(worker)
        if state == "stillborn":
            del self.asked[age]
            return Failed(worker, f"cannot fork a worker: {str(message.get('error'))[:200]}")
        raise MessageError(f"not a message of a zygote: {str(message)[:80]}")

    def signal(self, worker: WorkerHandle, signal: Signals, reason: str) -> None:
        """Do to the zygote what a worker that has no process yet is due: SIGABRT, SIGKILL."""
        if self.over or (signal == SIGABRT and self.aborted):
            return
        self.aborted = True
        self._log.error(
            "the zygote %d gets %s: its worker of age %d: %s", self.pid, signal.name, worker.age, reason
        )
        send_signal(self.pid, signal)

    def end(self) -> None:
        """Kill it: it has nothing to finish. Its workers are the master's, and stay."""
        if not self.over:
            self.over = True
            send_signal(self.pid, SIGKILL)
            self.close()

    def close(self) -> None:
        """Close the line. Also called in each child of the master."""
        self._sock.close()
        for _, _, writer in self._unsent:
            if writer >= 0:
                close(writer)
        self._unsent.clear()


class Nursery:
    """The zygotes of one master.

    Args:
        signals: the master's signals, which a child leaves.
        log: the error log.
        lifeline: see `fork_worker`.
        server: the master as hooks see it.

    Attributes:
        zygotes: those that have not been reaped.
        adopts: whether there has been any: then this process inherits orphans.
    """

    def __init__(
        self, signals: SignalQueue, log: logging.Logger, lifeline: tuple[int, int], server: Any
    ) -> None:
        self.zygotes: list[Zygote] = []
        self.adopts = False
        self._signals = signals
        self._log = log
        self._lifeline = lifeline
        self._server = server

    def fds(self) -> list[int]:
        """Return the descriptors to poll."""
        return [fd for zygote in self.zygotes if (fd := zygote.fileno()) >= 0]

    def request(
        self, worker: WorkerHandle, generation: Generation, slot: Slot, leave: Callable[[], None]
    ) -> None:
        """Ask the generation's zygote for a worker; make that zygote first where there is none.

        ``slot`` is its row of the scoreboard; ``leave`` closes, in a child, what is the master's. Raises OSError
        when the system would not; in the zygote `ForkedChild`.
        """
        zygote = generation.zygote
        if zygote is not None and not zygote.is_outdated and zygote.boards < generation.pool.boards:
            self._log.info(
                "more workers than ever: the zygote %d is replaced by one that knows their slots",
                zygote.pid,
            )
            zygote.is_outdated = True
        if zygote is None or zygote.over or zygote.aborted or zygote.is_outdated:
            zygote = generation.zygote = self._fork_zygote(worker, generation, leave)
            self.zygotes.append(zygote)
        zygote.request(worker, generation.pool.place(slot))

    def _fork_zygote(self, worker: WorkerHandle, generation: Generation, leave: Callable[[], None]) -> Zygote:
        ours, theirs = packet_pair()
        try:
            pid = fork_child(self._signals)
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid:
            theirs.close()
            self.adopts = True
            self._log.debug("zygote %d forked", pid)
            return Zygote(pid, ours, generation, self._log, self._is_new_child)
        ours.close()
        leave()
        boot = ZygoteBoot(
            generation=generation,
            sock=theirs,
            lifeline=self._lifeline[0],
            master_pid=self._server.pid,
            log=self._log,
            server=self._server,
            handle=worker,
        )
        name = self._server.proc_name

        def live(worker_main: Callable[[Any], int]) -> int:
            set_title("zygote", name)
            return be_worker(live_as_zygote(boot), worker_main)

        raise ForkedChild(live)

    def _is_new_child(self, pid: int) -> bool:
        """Whether ``pid`` is a child of this process that is no worker yet: it will be sent signals."""
        if pid <= 1 or pid in self._server.WORKERS or any(pid == zygote.pid for zygote in self.zygotes):
            return False
        try:
            waitid(P_PID, pid, WEXITED | WNOHANG | WNOWAIT)
        except (ChildProcessError, OverflowError):
            return False
        return True

    def close_in_child(self) -> None:
        """Close the lines to the zygotes."""
        for zygote in self.zygotes:
            zygote.close()

    def zygote_of(self, worker: WorkerHandle) -> Zygote | None:
        """Return the zygote that has been asked for ``worker`` and has not answered."""
        return next((each for each in self.zygotes if each.asked.get(worker.age) is worker), None)

    def hear(self) -> list[Spawned | Cancelled | Failed]:
        """Return what the zygotes have answered."""
        return [each for zygote in self.zygotes for each in zygote.hear()]

    def reap(self) -> list[Spawned | Cancelled | Failed]:
        """Note the zygotes that have died; return what becomes of the workers that they were asked for."""
        news: list[Spawned | Cancelled | Failed] = []
        for zygote in list(self.zygotes):
            if end := reap(zygote.pid):
                news += self.died(zygote, end.wait_status)
        return news

    def died(self, zygote: Zygote, wait_status: int | None) -> list[Spawned | Cancelled | Failed]:
        """Note that ``zygote`` has been reaped."""
        news = zygote.hear()
        self.zygotes.remove(zygote)
        how = died_how(wait_status)
        # That the application cannot be loaded has been reported, with the reason.
        is_known = zygote.over or (not zygote.loaded and how == died_how(ExitStatus.APPLICATION << 8))
        self._log.log(
            logging.DEBUG if is_known else logging.ERROR,
            "the zygote %d %s%s",
            zygote.pid,
            how,
            "" if is_known else "; the workers stay, and the next one that is needed gets a new zygote",
        )
        zygote.over = True
        zygote.close()
        call_hook(self._log, "child_exit", self._server.cfg.child_exit, self._server, self._as_worker(zygote))
        lost = [Failed(worker, how) for worker in zygote.asked.values()]
        zygote.asked.clear()
        return [*news, *lost]

    def _as_worker(self, zygote: Zygote) -> WorkerHandle:
        """Return what `child_exit` gets: a worker of age 0 that has the zygote's process id.

        What the application's import has noted under that id (a file of Prometheus gauges) is to be removed, too.
        """
        settings = self._server.cfg
        return WorkerHandle(
            age=0,
            generation=zygote.generation,
            spawned_at=zygote.began_at,
            timeout=settings.timeout,
            graceful_timeout=settings.graceful_timeout,
            pid=zygote.pid,
            cfg=settings,
            log=self._log,
            ppid=self._server.pid,
        )

    def reopen_logs(self) -> None:
        """Have all zygotes reopen their logs."""
        for zygote in self.zygotes:
            if not zygote.over:
                zygote.reopen_logs()

    def dismiss(self) -> list[Spawned | Cancelled | Failed]:
        """The server stops: end the zygotes, and wait for their processes; return what they have answered before.

        They hold the sockets, too: whoever connects when the workers have closed theirs would wait for nobody. One of
        which a worker is awaited is ended by `hear`, when that is born.
        """
        for zygote in self.zygotes:
            zygote.is_outdated = True
        news = self.hear()
        until = monotonic() + _GONE_S
        while any(zygote.over for zygote in self.zygotes) and monotonic() < until:
            sleep(0.001)
            news += self.reap()
        return news

    def close(self) -> None:
        """End all zygotes, and wait for their processes. At the end of the master."""
        for zygote in self.zygotes:
            zygote.end()
        until = monotonic() + _GONE_S
        while self.zygotes and monotonic() < until:
            self.reap()
            if self.zygotes:
                sleep(0.005)
