"""Hands out the rows of the scoreboard, and decides how many and how large they are."""

from __future__ import annotations

from wsgiserv.config.settings import Settings
from wsgiserv.config.worker_class import known, resolve
from wsgiserv.scoreboard import Scoreboard, Slot

# A scoreboard is a shared memory, which cannot grow: there is another one with so many slots.
_MORE_SLOTS = 16


class SlotPool:
    """The free slots of the scoreboard; grows when there are more workers than ever before.

    Args:
        cells: how many requests one worker can have in flight.
        slots: how many workers to make room for at first.

    Attributes:
        boards: the scoreboards, oldest first.
    """

    def __init__(self, cells: int, slots: int) -> None:
        self.cells = cells
        # A zygote knows those made before its fork only: their memory is inherited, not opened.
        self.boards: list[Scoreboard] = []
        self._free: list[Slot] = []
        self._grow(slots)

    def _grow(self, slots: int) -> None:
        board = Scoreboard(slots, self.cells)
        self.boards.append(board)
        # Low numbers first: slots that are never used stay without memory.
        self._free += reversed(board.slots)

    def place(self, slot: Slot) -> tuple[int, int]:
        """Return the place of ``slot``, for `slot`."""
        number = next(n for n, board in enumerate(self.boards) if slot in board.slots)
        return number, slot.index

    def slot(self, board: int, index: int) -> Slot:
        """Return the slot at a `place`. Called in a zygote's child."""
        return self.boards[board].slots[index]

    def take(self) -> Slot:
        """Return a cleared slot."""
        if not self._free:
            self._grow(_MORE_SLOTS)
        slot = self._free.pop()
        # A worker that was killed has left its requests in it.
        slot.clear()
        return slot

    def give_back(self, slot: Slot) -> None:
        """Take a slot back; its worker has been reaped."""
        self._free.append(slot)


def slot_pool(settings: Settings, before: SlotPool | None = None) -> SlotPool:
    """Return a pool for workers of this configuration: ``before``, where its slots have the right size."""
    kind = known(resolve(settings.worker_class, settings.threads))
    # A class of the user's own: at most one request on each connection.
    cells = settings.worker_connections if kind is None else int(kind.cells(settings))
    # The same pool over a reload: the slots of retired workers are used again.
    if before is not None and before.cells == cells:
        return before
    return SlotPool(cells, room_for(settings))


def room_for(settings: Settings) -> int:
    """Return how many slots to make at first."""
    # An old and a new generation. A slot that is never used costs addresses, not memory.
    slots = 2 * settings.workers + 2
    # A zygote does not know slots made after its fork, and would have to be replaced.
    return 2 * slots + 64 if settings.preload_app else slots


def capacity_of(settings: Settings) -> int:
    """Return how many requests one worker can have in the application at once."""
    kind = known(resolve(settings.worker_class, settings.threads))
    return settings.worker_connections if kind is None else int(kind.capacity(settings))
