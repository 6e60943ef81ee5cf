"""How much of bodies and responses one worker keeps in memory; what is more goes to spool files.

Owns: `MemoryBudget`.
Must not know: whose bytes they are.
"""

from __future__ import annotations

from _thread import allocate_lock

__all__ = ["MemoryBudget"]


class MemoryBudget:
    """What all clients of one worker may keep in memory together.

    Args:
        most_bytes: the bound.
    """

    __slots__ = ("_left", "_lock")

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._lock = allocate_lock()

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes; False when they are not left."""
        with self._lock:
            if self._left < size:
                return False
            self._left -= size
            return True

    def give_back(self, size: int) -> None:
        """Return ``size`` bytes that were taken."""
        with self._lock:
            self._left += size
