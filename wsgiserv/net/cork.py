"""Lets the answers of one turn of the event loop leave together.

What a small request costs in the kernel is mostly the waking of its client. A server that answers several requests back
to back pays for that once when the answers leave together.
"""

from __future__ import annotations

import _socket
from _socket import AF_INET, AF_INET6, IPPROTO_TCP, MSG_DONTWAIT, TCP_NODELAY
from _socket import socket as RawSocket
from collections import deque
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from typing import Any, Final

from wsgiserv.unpatched import get_ident

# With fewer ready connections client and server would only take turns: 8 to 14 % fewer requests with two.
LEAST_EVENTS: Final = 5
# Of quicker calls the clients are awake already.
_LEAST_CALL_S: Final = 0.000_022
# The first held answer waits for other calls no longer than this, nor than half a turn: few clients would otherwise
# wait together, and ask together while the server waits for them.
_LONGEST_HOLD_S: Final = 0.000_5
# An application with such calls would make the clients of the quick ones wait for them.
_LONG_CALL_S: Final = 0.005
_OFF_S: Final = 1.0
# How much the last turn counts in the average.
_WEIGHT: Final = 1 / 8
# The kernel has no such flag elsewhere than on Linux.
_MSG_MORE: Final[int] = getattr(_socket, "MSG_MORE", 0)
_HOLD: Final = MSG_DONTWAIT | _MSG_MORE
_TCP: Final = frozenset({AF_INET, AF_INET6})


@dataclass(slots=True, eq=False)
class Cork:
    """Holds whole answers in the kernel until the turn of the loop ends.

    They are sent with MSG_MORE (send(2)), and pushed by setting TCP_NODELAY (tcp(7)). In the kernel, not here: errors
    and partial sends stay exact, and the answers of a killed worker arrive all the same. The kernel sends them by
    itself after 200 ms.

    Args:
        enabled: whether anything is held at all (``cork``).

    Attributes:
        is_on: whether answers of this turn are held.
        held: the sockets whose answers wait, oldest first.
        batch: how often the held answers have been pushed.
    """

    # One thread holds, the loop's. Any thread may push: each step on the deque is atomic.

    enabled: bool = True
    is_on: bool = field(init=False, default=False)
    held: deque[RawSocket] = field(init=False, default_factory=deque)
    batch: int = field(init=False, default=0)
    _owner: int = field(init=False, default=0)
    _began: float = field(init=False, default=0.0)
    _events: int = field(init=False, default=0)
    _call_s: float = field(init=False, default=0.0)
    _push_at: float = field(init=False, default=0.0)
    _hold_s: float = field(init=False, default=0.0)
    _off_until: float = field(init=False, default=0.0)
    _asleep: Sized = field(init=False, default=())
    _wake: Callable[[], object] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.enabled = self.enabled and _MSG_MORE != 0

    def watched_by(self, wake: Callable[[], object], asleep: Sized) -> None:
        """Have a helper thread woken, by ``wake``, when an answer is held and ``asleep`` is not empty.

        It calls `push` for a batch that is there for too long: a call may take a second, all of a sudden.
        """
        self._wake = wake
        self._asleep = asleep

    # ---- the loop's thread ---------------------------------------------------------------------------------

    def begin(self, events: int, now: float) -> bool:
        """Begin a turn with so many events; return whether it is to be ended by `end`."""
        if not self.enabled or events < LEAST_EVENTS:
            return False
        self._began = now
        self._events = events
        if self._call_s > _LEAST_CALL_S and now >= self._off_until:
            self._owner = get_ident()
            self._hold_s = min(_LONGEST_HOLD_S, events * self._call_s / 2)
            self.is_on = True
        return True

    def send(self, sock: Any, data: bytes | memoryview) -> int:
        """Send the beginning of a whole answer, and hold it; return how many bytes. Raises OSError."""
        if type(sock) is not RawSocket or sock.family not in _TCP or get_ident() != self._owner:
            sent: int = sock.send(data, MSG_DONTWAIT)
            return sent
        sent = sock.send(data, _HOLD)
        self.held.append(sock)
        if self._asleep and self._wake is not None:
            self._wake()
        return sent

    def after_call(self, now: float, elapsed_s: float) -> None:
        """Push what is held if it has waited for long; hold nothing for a while after a long call."""
        if elapsed_s > _LONG_CALL_S and get_ident() == self._owner:  # calls of other threads hold nothing up
            self._off_until = now + _OFF_S
            self.stop()
        elif self.held:
            if not self._push_at:
                self._push_at = now + self._hold_s
            elif now >= self._push_at:
                self.push()

    def end(self, now: float) -> None:
        """End the turn."""
        self.stop()
        self._call_s += ((now - self._began) / self._events - self._call_s) * _WEIGHT

    # ---- any thread ----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Hold nothing more in this turn, and push."""
        self.is_on = False
        self.push()

    def push(self) -> None:
        """Let all held answers go."""
        held = self.held
        self.batch += 1
        self._push_at = 0.0
        while held:
            try:
                held.popleft().setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            except IndexError:  # another thread has taken the last one
                return
            except OSError:
                pass  # closed since: that has pushed it

    def close_in_child(self) -> None:
        """Forget what is held: the parent pushes it. Called in a child of the application."""
        self.is_on = self.enabled = False
        self.held.clear()
