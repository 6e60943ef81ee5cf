"""Messages between the server's processes: one JSON object a line, bounded in length, over a pipe.

Owns: `MessageWriter`, `MessageReader`, `encode`, `decode`, `write_all`, and what counts as garbage (`MessageError`).
Must not know: what the messages say, which processes there are.

A reader never trusts its peer: a worker runs the application, which can write anything into any descriptor. A reader
never waits, keeps at most one message of `LONGEST_MESSAGE_BYTES`, and takes at most `MOST_READ_BYTES` at a time, so
a peer that writes without end delays nobody. A writer never tears a message: what the pipe does not take is kept and
written later, before the next one.
"""

from __future__ import annotations

import json
from _thread import allocate_lock
from collections import deque
from contextlib import suppress
from os import close, read, set_blocking, write
from select import POLLOUT, poll
from time import monotonic
from typing import Any, Final

__all__ = [
    "LONGEST_MESSAGE_BYTES",
    "MessageError",
    "MessageReader",
    "MessageWriter",
    "decode",
    "encode",
    "write_all",
]

LONGEST_MESSAGE_BYTES: Final = 1024 * 1024
# What a reader takes at a time; the pipe holds 64 KiB on Linux, so a peer that has exited is read to its end.
MOST_READ_BYTES: Final = 256 * 1024
# What a writer keeps for a reader that does not read (a stopped master); beyond it messages are dropped.
_MOST_UNSENT_BYTES: Final = 4 * LONGEST_MESSAGE_BYTES
_PIECE_BYTES: Final = 64 * 1024


class MessageError(ValueError):
    """What has arrived is not a message; the text says why."""


def encode(message: dict[str, Any]) -> bytes:
    """Return ``message`` as one line. Lone surrogates survive, as `json.loads` of bytes takes them."""
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return the message in ``line``. Raises MessageError when that is not one JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        message = None
    if not isinstance(message, dict):
        raise MessageError(f"not a message: {line[:80]!r}")
    return message


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data`` to a blocking descriptor: write(2) may stop early at a signal. Raises OSError."""
    while data:
        data = data[write(fd, data) :]


class MessageWriter:
    """The sending end of a pipe. May be called from any thread, and from a signal handler during a call.

    Args:
        fd: the descriptor, owned from now on. It becomes non-blocking.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unsent: deque[bytes] = deque()
        self._writing = allocate_lock()
        set_blocking(fd, False)

    def send(self, message: dict[str, Any], wait_s: float = 0.0) -> None:
        """Send ``message`` after those that are still unsent.

        Args:
            message: what `encode` takes; above `LONGEST_MESSAGE_BYTES` encoded it is dropped.
            wait_s: how many seconds to wait while the pipe is full; the rest stays unsent and goes with the next call.

        A reader that is gone is not an error.
        """
        data = encode(message)
        if len(data) <= LONGEST_MESSAGE_BYTES and sum(map(len, tuple(self._unsent))) < _MOST_UNSENT_BYTES:
            self._unsent.append(data)
        self.flush(wait_s)

    @property
    def is_behind(self) -> bool:
        """Whether the reader has not taken all messages yet."""
        return bool(self._unsent)

    def flush(self, wait_s: float = 0.0) -> None:
        """Write what is unsent, as far as the pipe takes it within ``wait_s`` seconds."""
        until = monotonic() + wait_s
        # The holder of the lock also writes what others append: a signal handler cannot wait for the code that it
        # has interrupted.
        while self._unsent and self._writing.acquire(blocking=False):
            try:
                is_full = not self._write(until)
            finally:
                self._writing.release()
            if is_full:
                return

    def _write(self, until: float) -> bool:
        """Write until nothing is left; False when the pipe is full and the time is over. By the lock's holder."""
        unsent = self._unsent
        while unsent:
            try:
                sent = write(self._fd, unsent[0][:_PIECE_BYTES])
            except BlockingIOError:
                left_s = until - monotonic()
                if left_s <= 0:
                    return False
                poller = poll()
                poller.register(self._fd, POLLOUT)
                poller.poll(left_s * 1000)
                continue
            except OSError:  # the reader is gone
                unsent.clear()
                return True
            if sent == len(unsent[0]):
                unsent.popleft()
            else:
                unsent[0] = unsent[0][sent:]
        return True

    def close(self) -> None:
        """Close the pipe; what is unsent, or sent after this, is lost."""
        fd, self._fd = self._fd, -1
        self._unsent.clear()
        close(fd)


class MessageReader:
    """The receiving end of a pipe, to be polled through `fileno`.

    Args:
        fd: the descriptor, owned from now on. It becomes non-blocking.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        set_blocking(fd, False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the messages that have arrived, oldest first, and whether the other end is closed.

        There may be more: a descriptor that is still readable is to be read again. At the end of the pipe a last
        message may lack its newline; an unfinished one is dropped, since its sender has exited.

        Raises:
            MessageError: the peer has sent something else; the messages before it are lost, and the pipe is to be
                closed.
        """
        buffer = self._buffer
        closed = False
        left = MOST_READ_BYTES
        while left > 0:
            try:
                data = read(self._fd, min(left, 65536))
            except BlockingIOError:
                break
            if not data:
                closed = True
                break
            buffer += data
            left -= len(data)
        *lines, rest = buffer.split(b"\n")
        messages = [decode(bytes(line)) for line in lines]
        if rest and not rest.startswith(b"{"):
            raise MessageError(f"not a message: {bytes(rest[:80])!r}")
        if len(rest) > LONGEST_MESSAGE_BYTES:
            raise MessageError(f"a message of more than {LONGEST_MESSAGE_BYTES} bytes")
        if closed and rest:
            with suppress(MessageError):
                messages.append(decode(bytes(rest)))
            rest.clear()
        self._buffer = rest
        return messages, closed

    def close(self) -> None:
        """Close the pipe."""
        fd, self._fd = self._fd, -1
        close(fd)
