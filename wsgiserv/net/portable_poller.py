"""Waiting for sockets where there is no epoll: kqueue, devpoll or poll, through `selectors`.

Owns: `SelectorPoller`.
Must not know: what is waited for.
"""

from __future__ import annotations

import selectors
from select import POLLIN, POLLOUT
from typing import Final

from wsgiserv.net.serving_context import NONE, READ, WRITE

__all__ = ["SelectorPoller"]

# What EPOLLIN and EPOLLOUT are, too.
_IN: Final = POLLIN
_OUT: Final = POLLOUT
# Bound at import: a config file may call gevent.monkey.patch_all().
_default_selector = selectors.DefaultSelector


class SelectorPoller:
    """A `wsgiserv.net.event_loop.Poller` over the best of `selectors`."""

    _BITS: Final = {READ: selectors.EVENT_READ, WRITE: selectors.EVENT_WRITE}

    def __init__(self) -> None:
        self._selector = _default_selector()
        self._silent: set[int] = set()

    def register(self, fd: int, interest: int, exclusive: bool = False) -> None:
        self._selector.register(fd, self._BITS[interest])

    def modify(self, fd: int, interest: int) -> None:
        if interest == NONE:
            if fd not in self._silent:
                self._selector.unregister(fd)
                self._silent.add(fd)
        elif fd in self._silent:
            self._silent.discard(fd)
            self._selector.register(fd, self._BITS[interest])
        else:
            self._selector.modify(fd, self._BITS[interest])

    def unregister(self, fd: int) -> None:
        if fd in self._silent:
            self._silent.discard(fd)
        else:
            self._selector.unregister(fd)

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        return [
            (key.fd, _OUT if events == selectors.EVENT_WRITE else _IN)
            for key, events in self._selector.select(timeout_s)
        ]

    def fileno(self) -> int:
        # kqueue and devpoll have one; the last resort, poll, has not, and says so with AttributeError.
        return int(self._selector.fileno())

    def close(self) -> None:
        self._selector.close()
