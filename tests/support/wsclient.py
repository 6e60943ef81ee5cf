"""A WebSocket client that can break every rule: it writes the frames as the test says, and reads what comes."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
from typing import Any, NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_TIMEOUT_S = 20.0


class Frame(NamedTuple):
    """A frame that has been received."""

    opcode: int
    payload: bytes
    is_last: bool = True

    @property
    def code(self) -> int | None:
        """The close code; None for a close frame without one."""
        assert self.opcode == CLOSE, self
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else None


def frame(opcode: int, payload: bytes = b"", *, last: bool = True, reserved: int = 0, masked: bool = True) -> bytes:
    """Return a client's frame.

    Args:
        opcode: its opcode.
        payload: its payload.
        last: the bit FIN.
        reserved: the three reserved bits, RSV1 is 4.
        masked: whether the payload is masked, as a client's must be.
    """
    size = len(payload)
    head = bytes([last << 7 | reserved << 4 | opcode])
    if size < 126:
        head += bytes([masked << 7 | size])
    elif size < 1 << 16:
        head += bytes([masked << 7 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([masked << 7 | 127]) + struct.pack("!Q", size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def closing(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """Return a close frame."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def handshake(path: str = "/", **headers: str | None) -> bytes:
    """Return a request for a WebSocket.

    Args:
        path: its path.
        headers: further fields, or in place of the usual ones; None leaves one out. ``_`` in a name is a dash.
    """
    fields: dict[str, str | None] = {
        "Host": "test",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
        "Sec-WebSocket-Version": "13",
    }
    fields.update({name.replace("_", "-"): value for name, value in headers.items()})
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    return f"GET {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")


class FrameClient:
    """One connection, from its handshake on.

    Args:
        address: the server's.
        path: the request's path.
        context: TLS, if it is not None.
        early: frames that are sent along with the request.
        headers: as of `handshake`.

    Attributes:
        head: the response to the handshake: its status line and fields.
    """

    def __init__(
        self,
        address: Any,
        path: str = "/",
        *,
        context: ssl.SSLContext | None = None,
        early: bytes = b"",
        **headers: str | None,
    ) -> None:
        self.sock = socket.create_connection(address, timeout=_TIMEOUT_S)
        if context is not None:
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        self._received = bytearray()
        self.sock.sendall(handshake(path, **headers) + early)
        self.head = self._read_head()

    @property
    def status(self) -> int:
        """The status of the response to the handshake."""
        return int(self.head.split()[1])

    def _read_head(self) -> str:
        while b"\r\n\r\n" not in self._received:
            assert self._read_more(), f"the connection has ended in the head: {bytes(self._received)!r}"
        head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        self._received = bytearray(rest)
        return head.decode("latin-1")

    def _read_more(self) -> bool:
        data = self.sock.recv(1 << 20)
        self._received += data
        return bool(data)

    def _take(self, count: int) -> bytes | None:
        while len(self._received) < count:
            if not self._read_more():
                return None
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def send(self, data: bytes) -> None:
        """Send bytes: frames, or parts of some."""
        self.sock.sendall(data)

    def receive(self) -> Frame | None:
        """Return the next frame; None at the end of the connection, which is no reset."""
        head = self._take(2)
        if head is None:
            return None
        assert not head[0] & 0x70, "the server has set a reserved bit"
        assert not head[1] & 0x80, "the server has masked a frame"
        size = head[1] & 0x7F
        if size == 126:
            size = int.from_bytes(self._take(2) or b"", "big")
        elif size == 127:
            size = int.from_bytes(self._take(8) or b"", "big")
        payload = self._take(size)
        assert payload is not None, "the connection has ended in a frame"
        return Frame(head[0] & 0xF, payload, bool(head[0] & 0x80))

    def message(self) -> Frame:
        """Return the next message, its fragments joined; control frames must not come."""
        first = part = self.receive()
        assert first is not None, "the connection has ended"
        assert first.opcode in (TEXT, BINARY), first
        payload = first.payload
        while not part.is_last:
            part = self.receive()
            assert part is not None
            assert part.opcode == CONTINUATION, part
            payload += part.payload
        return Frame(first.opcode, payload)

    def echo(self, payload: bytes, opcode: int = TEXT) -> None:
        """Hold that a message comes back."""
        self.send(frame(opcode, payload))
        assert self.message() == Frame(opcode, payload)

    def close(self, code: int = 1000) -> None:
        """Close as the protocol has it: a close frame, its answer, the end of the connection."""
        self.send(closing(code))
        answer = self.receive()
        assert answer is not None
        assert answer.code == code
        assert self.receive() is None
        self.sock.close()

    def end(self) -> None:
        """Close the socket, without a close frame."""
        self.sock.close()

    def __enter__(self) -> FrameClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.sock.close()
