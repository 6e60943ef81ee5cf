"""Pushes the answers that a call, long all of a sudden, keeps in the kernel."""

from __future__ import annotations

from typing import Final

from wsgiserv.net.cork import Cork
from wsgiserv.worker.helper_thread import HelperThread

# An answer waits for two looks at most.
_LOOK_S: Final = 0.008


class CorkWatch:
    """The helper of one worker.

    Args:
        cork: holds the answers.
    """

    def __init__(self, cork: Cork) -> None:
        self._cork = cork
        self._thread = HelperThread("cork", self._work)

    def start(self) -> None:
        """Start the helper's thread, after the fork. Raises BootError."""
        self._thread.start()
        self._cork.watched_by(self._thread.wake, self._thread.asleep)

    def _work(self) -> None:
        cork, thread = self._cork, self._thread
        seen = -1
        while not thread.stopping:
            batch, is_held = cork.batch, bool(cork.held)
            if is_held and batch == seen:  # since the last look
                cork.push()
            thread.rest(_LOOK_S, batch == seen and not is_held, cork.held)
            seen = batch
