"""Bounds the memory of one worker's bodies and responses; what exceeds it goes to spool files."""

from __future__ import annotations

from _thread import allocate_lock


class MemoryBudget:
    """Memory shared by all clients of one worker.

    Args:
        most_bytes: the bound.
    """

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
