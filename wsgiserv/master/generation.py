"""A generation: one reading of the configuration, and what belongs to it.

Owns: `Generation`, its slots on the scoreboard, the environment variables of `raw_env`.
Must not know: workers, signals, when a generation begins or ends.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from wsgiserv.config.worker_class import known_worker_class
from wsgiserv.master.pidfile import PidFile
from wsgiserv.net.listener import Listener
from wsgiserv.scoreboard import Scoreboard, Slot

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings
    from wsgiserv.master.zygote_client import Zygote
    from wsgiserv.net.tls_series import ContextSeries

__all__ = ["Generation", "RawEnvironment", "SlotPool", "cells_of", "room_for"]


class Generation:
    """The values that the workers of one generation start with.

    Attributes:
        number: the serial number, from 1.
        settings: the configuration.
        listeners: its listening sockets; those of the generation before, where `bind` is the same.
        workers: how many workers it is to have (TTIN and TTOU change it).
        application: the application that the master itself has preloaded, or None.
        preload: loads the application in a zygote; None: the workers do not come from one.
        zygote: its zygote; None before its first worker, and without `preload`.
        pool: where its workers get their slots.
        began_at: when its start or reload began, ``time.monotonic()`` seconds.
        pid_file: a new pid file that replaces the old one when this generation is in force.
        tls_contexts: the TLS contexts of its workers; None without TLS, and where each worker makes its own.
    """

    def __init__(
        self,
        number: int,
        settings: Settings,
        listeners: Sequence[Listener],
        pool: SlotPool,
        application: Callable[..., Any] | None,
        preload: Callable[[], Callable[..., Any]] | None,
        began_at: float,
        tls_contexts: ContextSeries | None = None,
    ) -> None:
        self.number = number
        self.settings = settings
        self.listeners = list(listeners)
        self.workers = settings.workers
        self.pool = pool
        self.application = application
        self.preload = preload
        self.zygote: Zygote | None = None
        self.began_at = began_at
        self.pid_file: PidFile | None = None
        self.tls_contexts = tls_contexts


class SlotPool:
    """The free slots of the scoreboard; grows when there are more workers than ever before.

    Args:
        cells: how many requests one worker can have in flight.
        slots: how many workers to make room for at first.
    """

    def __init__(self, cells: int, slots: int) -> None:
        self.cells = cells
        self._boards: list[Scoreboard] = []
        self._free: list[Slot] = []
        self._grow(slots)

    def _grow(self, slots: int) -> None:
        board = Scoreboard(slots, self.cells)
        self._boards.append(board)
        # Low numbers first: slots that are never used stay without memory.
        self._free += reversed(board.slots)

    @property
    def boards(self) -> int:
        """How often room has been made: a zygote knows what there was when it was forked."""
        return len(self._boards)

    def place(self, slot: Slot) -> tuple[int, int]:
        """Return where ``slot`` is, for `slot`."""
        number = next(n for n, board in enumerate(self._boards) if slot in board.slots)
        return number, slot.index

    def slot(self, board: int, index: int) -> Slot:
        """Return the slot at a `place`. Called in a zygote's child."""
        return self._boards[board].slots[index]

    def take(self) -> Slot:
        """Return a cleared slot."""
        if not self._free:
            self._grow(16)
        slot = self._free.pop()
        slot.clear()
        return slot

    def give_back(self, slot: Slot) -> None:
        """Take a slot back; its worker has been reaped."""
        self._free.append(slot)


def room_for(settings: Settings) -> int:
    """Return how many slots to make at first. What is never used costs addresses, not memory."""
    # An old and a new generation.
    slots = 2 * settings.workers + 2
    # A zygote does not know what is made after it, and would have to be replaced.
    return 2 * slots + 64 if settings.preload_app else slots


def cells_of(settings: Settings) -> int:
    """Return how many requests one worker of this configuration can have in flight."""
    kind = known_worker_class(settings)
    return settings.worker_connections if kind is None else int(kind.cells(settings))


class RawEnvironment:
    """Applies `raw_env` to an environment, and takes back what an earlier configuration has set.

    Args:
        environ: ``os.environ``.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._environ = environ
        self._before: dict[str, str | None] = {}

    def apply(self, pairs: Sequence[str]) -> None:
        """Set each ``KEY=VALUE``; variables of the last call that are not among them get their old values back."""
        for key, value in self._before.items():
            if value is None:
                self._environ.pop(key, None)
            else:
                self._environ[key] = value
        self._before.clear()
        for pair in pairs:
            key, _, value = pair.partition("=")
            self._before.setdefault(key, self._environ.get(key))
            self._environ[key] = value
