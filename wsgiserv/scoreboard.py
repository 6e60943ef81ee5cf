"""The scoreboard: what every worker is doing, in memory that outlives the worker.

Owns: the layout of one anonymous shared ``mmap`` with a slot per worker and a cell per request in
flight, its writers (the worker) and its readers (the master).
Must not know: sockets, HTTP, configuration, who decides what about the figures.

The master makes the scoreboard before the first fork, so it can read it even after a worker was killed
with ``SIGKILL``; counters live here, so a worker's death loses none. One writer per slot, so there are
no locks: every figure is an aligned 64-bit word, which the platforms we run on store in one piece.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

__all__ = ["CELL_BYTES", "Cell", "Scoreboard", "Slot", "SlotFigures"]

# A slot is a row of 64-bit words followed by its cells. Word numbers (integers unless marked "seconds"):
PID = 0
GENERATION = 1
AGE = 2
STATE = 3
STARTED = 4  # seconds, time.monotonic()
HEARTBEAT = 5  # seconds, time.monotonic(); 0.0 until the worker's loop runs
REQUESTS = 6  # requests answered
ERRORS = 7  # of these, answered with a 5xx status
CONNECTIONS = 8  # connections open now
IN_FLIGHT = 9  # requests in the application now
BYTES_SENT = 10  # response body bytes
STOPPING = (
    11  # written by the master: 1 when the whole server stops, so that nothing is handed over; or FOR_GOOD
)
DRAINING = 12  # written by the master: 1 while the server goes on accepting, but is about to stop
LISTENING = 13  # written by the worker: 1 while it takes what comes from the listeners
LOAD = 14  # how much of its time it had something to do lately, in thousandths: see `Slot.with_room`
# Lines of the access log that wait in the worker's memory for the log to take them: lost if it is killed.
WAITING_LINES = 29
LINGERING = 15  # written by the worker: 1 while it leaves, and keeps idle connections that no other can take
UNTOLD_LINES = 30  # of LOST_LINES, those that no log tells of yet: they become the master's to tell
LOST_LINES = 31  # lines that the logs have not taken
WORDS = 32

FOR_GOOD = 2  # in STOPPING: the master has closed the listeners, and there is no next one

# One request in flight: started (seconds, time.monotonic(); 0.0 = the cell is free), the peer, the
# request id, the request line. struct pads and cuts the strings, in C, in one call. The pad byte behind the peer is
# set by `Slot.mark_logged`, and zeroed by each `begin`.
_CELL = struct.Struct("=d47sx48s408s")
_LOGGED_AT = 8 + 47
CELL_BYTES = _CELL.size
_STARTED = struct.Struct("=d")
# A worker that serves gives a sign of life each second.
_RECENT_S = 2.5
# A worker with less to do than this could do more, in thousandths of its time.
_HAS_ROOM = 500
# Low cells are used first.
_CELLS_LOOKED_AT = 8


class Cell(NamedTuple):
    """One request in flight, as the master reads it.

    Attributes:
        started: ``time.monotonic()`` when the application was called, in seconds.
        peer: the client's address, as in the access log.
        request_id: the request's id.
        request_line: the request line, cut to 408 bytes.
        logged: whether the worker has written its line to the access log already.
    """

    started: float
    peer: str
    request_id: str
    request_line: str
    logged: bool = False


class SlotFigures(NamedTuple):
    """A worker's figures at one moment; times are ``time.monotonic()`` seconds."""

    pid: int
    generation: int
    age: int
    started: float
    heartbeat: float
    requests: int
    errors: int
    connections: int
    in_flight: int
    bytes_sent: int
    lost_lines: int = 0
    untold_lines: int = 0
    waiting_lines: int = 0


class Slot:
    """One worker's row. The worker writes; the master clears it before a fork and reads it at any time.

    ``words`` and ``seconds`` are the same memory as int64 and as float64: the hot path stores into them
    by index (``slot.words[REQUESTS] = n``), the cheapest write there is.
    """

    __slots__ = ("_memory", "_offset", "board", "cells", "index", "seconds", "words")

    def __init__(self, memory: memoryview, offset: int, index: int, cells: int) -> None:
        self._memory = memory
        self._offset = offset
        self.index = index
        self.cells = cells
        self.board: list[Slot] = []
        row = memory[offset : offset + WORDS * 8]
        self.words = row.cast("q")
        self.seconds = row.cast("d")

    def detach(self) -> None:
        """Go on with a copy that nobody reads. Called in a child of the application: the row is its parent's."""
        size = WORDS * 8 + self.cells * CELL_BYTES
        self._memory = memoryview(bytearray(self._memory[self._offset : self._offset + size]))
        self._offset = 0
        row = self._memory[: WORDS * 8]
        self.words = row.cast("q")
        self.seconds = row.cast("d")

    def clear(self) -> None:
        """Zero the whole row. The master calls it before it forks a worker into the slot."""
        size = WORDS * 8 + self.cells * CELL_BYTES
        self._memory[self._offset : self._offset + size] = bytes(size)

    def begin(self, cell: int, started: float, peer: bytes, request_id: bytes, request_line: bytes) -> None:
        """Note a request in flight in ``cell`` (0 to ``cells`` - 1). Called by the worker's thread that runs it."""
        _CELL.pack_into(
            self._memory,
            self._offset + WORDS * 8 + cell * CELL_BYTES,
            started,
            peer,
            request_id,
            request_line,
        )

    def end(self, cell: int) -> None:
        """Free ``cell``: the request's response has been made."""
        start = self._offset + WORDS * 8 + cell * CELL_BYTES
        self._memory[start : start + 8] = b"\0\0\0\0\0\0\0\0"

    def mark_logged(self, cell: int) -> None:
        """Note that the request in ``cell`` has its line in the access log, although its call has not ended."""
        self._memory[self._offset + WORDS * 8 + cell * CELL_BYTES + _LOGGED_AT] = 1

    def is_busy(self) -> bool:
        """Whether a request is in the application, as far as the first cells tell. Called by the master."""
        start = self._offset + WORDS * 8
        end = start + min(self.cells, _CELLS_LOOKED_AT) * CELL_BYTES
        return any(_STARTED.unpack_from(self._memory, at)[0] for at in range(start, end, CELL_BYTES))

    def load(self) -> tuple[int, float]:
        """Return how many requests are in the application, and when the oldest began (0.0 without any).

        Called by the master, several times a second: 10 µs for 1,000 cells, where reading each would take 330.
        """
        start = self._offset + WORDS * 8
        cells = self._memory[start : start + self.cells * CELL_BYTES].cast("d")[:: CELL_BYTES // 8]
        begun = [at for at in cells.tolist() if at]
        return len(begun), min(begun, default=0.0)

    def idle_siblings(self, now: float) -> int:
        """Return how many other workers run no request at this moment. Called by a worker.

        Args:
            now: ``time.monotonic()`` seconds; a row without a recent sign of life is nobody's.
        """
        return sum(
            1
            for other in self.board
            if other is not self
            and now - other.seconds[HEARTBEAT] < _RECENT_S
            and not other.words[STOPPING]
            and not other.is_busy()
        )

    def with_room(self, now: float) -> list[int]:
        """Return how many connections each other worker has that could take more of them. Called by a worker.

        Args:
            now: ``time.monotonic()`` seconds; a row without a recent sign of life is nobody's.
        """
        return [
            other.words[CONNECTIONS]
            for other in self.board
            if other is not self
            and now - other.seconds[HEARTBEAT] < _RECENT_S
            and other.words[LISTENING]
            and other.words[LOAD] < _HAS_ROOM
        ]

    def others_listen(self) -> bool:
        """Whether another worker takes what comes from the listeners as well. Called by a worker."""
        return any(other.words[LISTENING] for other in self.board if other is not self)

    def figures(self) -> SlotFigures:
        """Return the slot's figures. Called by the master; the worker may be writing, each figure is whole."""
        words, seconds = self.words, self.seconds
        return SlotFigures(
            pid=words[PID],
            generation=words[GENERATION],
            age=words[AGE],
            started=seconds[STARTED],
            heartbeat=seconds[HEARTBEAT],
            requests=words[REQUESTS],
            errors=words[ERRORS],
            connections=words[CONNECTIONS],
            in_flight=words[IN_FLIGHT],
            bytes_sent=words[BYTES_SENT],
            lost_lines=words[LOST_LINES],
            untold_lines=words[UNTOLD_LINES],
            waiting_lines=words[WAITING_LINES],
        )

    def in_flight(self) -> list[Cell]:
        """Return the requests in flight, oldest first. Called by the master, also after the worker's death."""
        found: list[Cell] = []
        start = self._offset + WORDS * 8
        for position in range(start, start + self.cells * CELL_BYTES, CELL_BYTES):
            started, peer, request_id, line = _CELL.unpack_from(self._memory, position)
            if started:
                texts = [part.rstrip(b"\0").decode("latin-1") for part in (peer, request_id, line)]
                logged = bool(self._memory[position + _LOGGED_AT])
                found.append(Cell(started, texts[0], texts[1], texts[2], logged))
        found.sort()
        return found


class Scoreboard:
    """All slots, in one anonymous shared mapping.

    Args:
        slots: how many workers can exist at once, old and new generations together.
        cells: how many requests one worker can have in flight.

    The mapping is lazily backed by the kernel: slots that are never used cost address space, not memory.
    """

    def __init__(self, slots: int, cells: int) -> None:
        size = WORDS * 8 + cells * CELL_BYTES
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages: an unused slot stays unbacked
        self._map = mmap.mmap(-1, slots * size)
        memory = memoryview(self._map)
        self.slots = [Slot(memory, index * size, index, cells) for index in range(slots)]
        for slot in self.slots:
            slot.board = self.slots
