"""Waits for sockets where there is no epoll: kqueue, devpoll or poll, through `selectors`."""

from __future__ import annotations

import selectors
from typing import Final

from wsgiserv.net.serving_context import NONE, READ, WRITE

# Bound at import: a config file may call gevent.monkey.patch_all().
_default_selector = selectors.DefaultSelector
_BITS: Final = {READ: selectors.EVENT_READ, WRITE: selectors.EVENT_WRITE}


class SelectorPoller:
    """The calls of `select.epoll` over the best of `selectors`; a bit of WRITE alone means writable."""

    def __init__(self) -> None:
        self._selector = _default_selector()
        # Descriptors registered for nothing, which `selectors` refuses and epoll allows.
        self._silent: set[int] = set()

    def register(self, fd: int, interest: int) -> None:
        if interest == NONE:
            self._silent.add(fd)
            return
        self._silent.discard(fd)
        # EPOLLEXCLUSIVE, which listeners ask for, means nothing here.
        self._selector.register(fd, _BITS[interest & (READ | WRITE)])

    def modify(self, fd: int, interest: int) -> None:
        if fd in self._silent:
            self.register(fd, interest)
        elif interest == NONE:
            self._selector.unregister(fd)
            self._silent.add(fd)
        else:
            self._selector.modify(fd, _BITS[interest])

    def unregister(self, fd: int) -> None:
        if fd in self._silent:
            self._silent.discard(fd)
        else:
            self._selector.unregister(fd)

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        found = self._selector.select(timeout_s)
        return [(key.fd, WRITE if events == selectors.EVENT_WRITE else READ) for key, events in found]

    def fileno(self) -> int:
        # kqueue and devpoll have one; the last resort, poll, has not, and says so with AttributeError.
        return int(self._selector.fileno())

    def close(self) -> None:
        self._selector.close()
