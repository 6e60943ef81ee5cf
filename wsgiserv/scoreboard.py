"""Holds the figures of all workers, in memory that outlives each of them.

The scoreboard is one anonymous shared ``mmap`` with a slot per worker and a cell per request in flight. The master
makes it before the first fork, and reads it even after a worker was killed by ``SIGKILL``. One writer per slot, so
there are no locks: every figure is an aligned 64-bit word, which the supported platforms store in one piece.

It never crosses an upgrade (SIGUSR2): the mapping ends with the ``exec``, and the new master makes its own. So its
layout needs no version.
"""

from __future__ import annotations

import mmap
import struct
from operator import add
from typing import NamedTuple

# A slot is a row of 64-bit words followed by its cells. The numbers of the words, written by the worker unless marked
# "master"; integers unless marked "seconds":
REQUESTS = 0  # requests answered
ERRORS = 1  # of these, answered with a 5xx status
CONNECTIONS = 2  # connections open now
LOST_LINES = 3  # lines that the logs have not taken
UNTOLD_LINES = 4  # of LOST_LINES, those that no log mentions yet: the master takes them over
# Lines of the access log that wait in the worker's memory for the log to take them: lost if it is killed.
WAITING_LINES = 5
HEARTBEAT = 6  # seconds, time.monotonic(); 0.0 until the worker's loop runs
STOPPING = 7  # master: 1 when the whole server stops, so that no connection is handed over; or FOR_GOOD
DRAINING = 8  # master: 1 while the server goes on accepting, but is about to stop
LISTENING = 9  # 1 while it accepts from the listeners
LOAD = 10  # the busy share of its time lately, in thousandths: see `Slot.with_room`
LINGERING = 11  # 1 while it leaves, and keeps idle connections that no other worker can take
DETACHED = 12  # of CONNECTIONS, those that the application has taken (WebSockets)
WORDS = 13
_ROW_BYTES = WORDS * 8

FOR_GOOD = 2  # in STOPPING: the master has closed the listeners, and there is no next one

# One request in flight: started (seconds, time.monotonic(); 0.0 = the cell is free), the peer, the
# request id, the request line. struct pads and cuts the strings, in C, in one call. The pad byte behind the peer
# has flags: `Slot.mark_logged` and `Slot.mark_detached` set them, and each `begin` zeroes them.
_CELL = struct.Struct("=d47sx48s408s")
_FLAGS_AT = 8 + 47
_LOGGED = 1
_DETACHED = 2
CELL_BYTES = _CELL.size
CELL_WORDS = CELL_BYTES // 8
CELLS_AT = _ROW_BYTES
pack_cell = _CELL.pack_into
# A worker that serves renews its heartbeat each second.
_RECENT_S = 2.5
# A worker that is busy for less of its time than this, in thousandths, could do more.
_HAS_ROOM = 500


class RequestInFlight(NamedTuple):
    """A request in the application, as the master reads it.

    Attributes:
        request_line: its first 408 bytes.
        peer: the client's address, as in the access log; empty for a Unix socket.
        request_id: its id.
        age_s: its time in the application, in seconds.
        logged: whether the worker has written its line to the access log already.
        detached: whether the application has taken its connection (WebSockets).
    """

    request_line: str
    peer: str
    request_id: str
    age_s: float
    logged: bool = False
    detached: bool = False


class SlotFigures(NamedTuple):
    """A worker's figures at one moment: the first words of its slot, in their order."""

    requests: int = 0
    errors: int = 0
    connections: int = 0
    lost_lines: int = 0
    untold_lines: int = 0
    waiting_lines: int = 0

    def plus(self, other: SlotFigures) -> SlotFigures:
        """Return the sums."""
        return SlotFigures(*map(add, self, other))


class Slot:
    """One worker's row. The worker writes; the master clears it before a fork and reads it at any time.

    ``words`` and ``seconds`` are the same memory as int64 and as float64: the hot path stores into them
    by index (``slot.words[REQUESTS] = n``), the cheapest write there is. ``begun`` has the cells as float64, from the
    first one's start on.
    """

    __slots__ = ("begun", "board", "cells", "index", "memory", "seconds", "words")

    def __init__(self, memory: memoryview, index: int, cells: int) -> None:
        self.index = index
        self.cells = cells
        self.board: list[Slot] = []
        self._use(memory)

    def _use(self, memory: memoryview) -> None:
        self.memory = memory
        self.words = memory[:_ROW_BYTES].cast("q")
        self.seconds = memory[:_ROW_BYTES].cast("d")
        self.begun = memory[CELLS_AT:].cast("d")

    def detach(self) -> None:
        """Go on with a private copy. Called in a child of the application: the row belongs to its parent."""
        self._use(memoryview(bytearray(self.memory)))

    def clear(self) -> None:
        """Zero the whole row. The master calls it before it forks a worker into the slot."""
        self.memory[:] = bytes(len(self.memory))

    def begin(self, cell: int, started: float, peer: bytes, request_id: bytes, request_line: bytes) -> None:
        """Note a request in flight. Called by the worker's thread that runs it.

        Args:
            cell: the number of its cell, 0 to ``cells`` - 1.
            started: ``time.monotonic()`` seconds.
            peer, request_id, request_line: as of `RequestInFlight`.
        """
        pack_cell(self.memory, CELLS_AT + cell * CELL_BYTES, started, peer, request_id, request_line)

    def end(self, cell: int) -> None:
        """Free ``cell``: the request's response has been made."""
        self.begun[cell * CELL_WORDS] = 0.0

    def mark_logged(self, cell: int) -> None:
        """Note that the request in ``cell`` has its line in the access log, although its call has not ended."""
        self.memory[CELLS_AT + cell * CELL_BYTES + _FLAGS_AT] |= _LOGGED

    def mark_detached(self, cell: int) -> None:
        """Note that the application has taken the connection of the request in ``cell``."""
        self.memory[CELLS_AT + cell * CELL_BYTES + _FLAGS_AT] |= _DETACHED

    def load(self) -> tuple[int, float]:
        """Return the number of requests in the application, and when the oldest began (0.0 without any).

        Called by the master, several times a second: 10 µs for 1,000 cells, where reading each would take 330.
        """
        begun = [at for at in self.begun[::CELL_WORDS].tolist() if at]
        return len(begun), min(begun, default=0.0)

    def is_busy(self) -> bool:
        """Whether a request is in the application."""
        return self.load()[0] > 0

    def _siblings(self, now: float) -> list[Slot]:
        """Return the slots of the other workers that renewed their heartbeat lately."""
        return [other for other in self.board if other is not self and now - other.seconds[HEARTBEAT] < _RECENT_S]

    def idle_siblings(self, now: float) -> int:
        """Return the number of other workers that run no request at this moment. Called by a worker.

        Args:
            now: ``time.monotonic()`` seconds; a row without a recent heartbeat does not count.
        """
        return sum(not other.words[STOPPING] and not other.is_busy() for other in self._siblings(now))

    def with_room(self, now: float) -> list[int]:
        """Return the number of connections of each other worker that could take more. Called by a worker.

        Args:
            now: ``time.monotonic()`` seconds; a row without a recent heartbeat does not count.
        """
        return [
            other.words[CONNECTIONS]
            for other in self._siblings(now)
            if other.words[LISTENING] and other.words[LOAD] < _HAS_ROOM
        ]

    def others_listen(self) -> bool:
        """Whether another worker accepts from the listeners as well. Called by a worker."""
        return any(other.words[LISTENING] for other in self.board if other is not self)

    def figures(self) -> SlotFigures:
        """Return the slot's figures. Called by the master; the worker may be writing, each figure is whole."""
        return SlotFigures._make(self.words[: len(SlotFigures._fields)])

    def in_flight(self, now: float) -> list[RequestInFlight]:
        """Return the requests in flight, oldest first. Called by the master, also after the worker's exit."""
        # A request whose response has just left, and which the worker has not noted as done yet, is among them.
        found: list[RequestInFlight] = []
        for position in range(CELLS_AT, len(self.memory), CELL_BYTES):
            started, *texts = _CELL.unpack_from(self.memory, position)
            if started:
                peer, request_id, line = (part.rstrip(b"\0").decode("latin-1") for part in texts)
                flags = self.memory[position + _FLAGS_AT]
                marks = bool(flags & _LOGGED), bool(flags & _DETACHED)
                # The worker may have noted it after the master's look at the clock.
                found.append(RequestInFlight(line, peer, request_id, max(0.0, now - started), *marks))
        return sorted(found, key=lambda request: -request.age_s)


class Scoreboard:
    """All slots, in one anonymous shared mapping.

    Args:
        slots: the number of workers that can exist at once, old and new generations together.
        cells: the number of requests that one worker can have in flight.

    The kernel backs the mapping lazily: slots that are never used cost address space, not memory.
    """

    def __init__(self, slots: int, cells: int) -> None:
        size = _ROW_BYTES + cells * CELL_BYTES
        paged = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages: an unused slot stays unbacked
        self._map = mmap.mmap(-1, slots * paged)
        memory = memoryview(self._map)
        self.slots = [Slot(memory[index * paged : index * paged + size], index, cells) for index in range(slots)]
        for slot in self.slots:
            slot.board = self.slots
