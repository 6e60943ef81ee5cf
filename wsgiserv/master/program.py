"""The program that a server is part of: `wsgiserv.run` in its own process, `wsgiserv.Server` in a child of it.

Such a child and its program talk over a pair of sockets, in messages of `ipc`. The child says ``ready`` with its
addresses, and the outcome of each ``reload``. The end of the line is the end of the program, however it has ended.
"""

from __future__ import annotations

from _socket import MSG_DONTWAIT, MSG_NOSIGNAL
from _socket import socket as RawSocket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import getppid, set_inheritable
from select import POLLOUT
from time import monotonic
from typing import Any, Final

from wsgiserv.ipc import MessageError, decode, encode, wait_for
from wsgiserv.master.control import Done

_LONGEST_BYTES: Final = 4096
# The program reads at once what it waits for; one that is stopped must not hold the server's end up.
_SEND_S: Final = 5.0


class ProgramLine:
    """The line from a server in the background to its program.

    Args:
        fd: the child's end of the pair of sockets, owned from now on.
        parent: the process id of the program.

    Attributes:
        is_over: True when the program has ended, or has closed its end.
    """

    def __init__(self, fd: int, parent: int) -> None:
        self._sock = RawSocket(fileno=fd)
        self._sock.setblocking(False)
        set_inheritable(fd, False)
        self._parent = parent
        self._received = b""
        self.is_over = False

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._sock.fileno()

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message. A program that has ended, or does not read for 5 s, does not get it."""
        data = encode(message)
        until = monotonic() + _SEND_S
        while data and monotonic() < until:
            try:
                data = data[self._sock.send(data, MSG_DONTWAIT | MSG_NOSIGNAL) :]
            except BlockingIOError:
                wait_for(self._sock.fileno(), 0.1, POLLOUT)
            except OSError:
                self.is_over = True
                return

    def read(self) -> list[dict[str, Any]]:
        """Return the messages that have come. Never waits."""
        try:
            while data := self._sock.recv(_LONGEST_BYTES, MSG_DONTWAIT):
                self._received += data
            self.is_over = True
        except BlockingIOError:
            # A child of the program's own may hold its end open: the kernel has given this process another parent then.
            self.is_over = getppid() != self._parent
        except OSError:
            self.is_over = True
        *lines, self._received = self._received.split(b"\n")
        try:
            return [decode(line) for line in lines]
        except MessageError:
            return []

    def close(self) -> None:
        """Close the descriptor. Called in each child of the server, whose copy would hide its end."""
        self._sock.close()


@dataclass(frozen=True)
class Program:
    """The program around a master.

    Attributes:
        in_child: called in each process that the master has forked, before anything else: the program's exit handlers
            and the like are not the child's.
        line: the line to the program where it is another process; None where it is this one.
        upgrades: whether its command line starts the server anew (SIGUSR2).
    """

    in_child: Callable[[], object]
    line: ProgramLine | None = None
    upgrades: bool = True
    # The outcomes of reloads that the program does not know yet: old workers still accept.
    _reloaded: list[dict[str, Any]] = field(default_factory=list)

    def is_ready(self, addresses: Sequence[tuple[str, Any]]) -> None:
        """Tell the program that all workers serve.

        Args:
            addresses: the URL and the address of each listener.
        """
        if self.line is not None:
            self.line.tell({"event": "ready", "addresses": list(addresses)})

    def fds(self) -> Iterator[int]:
        """Yield the descriptors to poll for reading, before `obey`."""
        if self.line is not None and not self.line.is_over:
            yield self.line.fileno()

    def obey(self, reload: Callable[[Done], None], old_accept: Callable[[], bool]) -> bool:
        """Carry out the requests of a program in another process; return True when that has ended.

        Args:
            reload: requests a reload.
            old_accept: tells whether workers of an older generation still accept connections.
        """
        if self.line is None:
            return False
        for message in self.line.read():
            if message.get("command") == "reload":
                reload(partial(self._on_outcome, message.get("number")))
        # The next request is to meet the new code.
        if self._reloaded and not old_accept():
            while self._reloaded:
                self.line.tell(self._reloaded.pop(0))
        return self.line.is_over

    def _on_outcome(self, number: object, ok: bool, reason: str) -> None:
        outcome = {"event": "outcome", "number": number, "ok": ok, "reason": reason}
        if ok:
            self._reloaded.append(outcome)
        elif self.line is not None:
            self.line.tell(outcome)

    def close_in_child(self) -> None:
        """Close the line in a child of the master."""
        if self.line is not None:
            self.line.close()
