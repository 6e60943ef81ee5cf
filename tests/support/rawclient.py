"""A client that sends any bytes and believes nothing: it reads responses by the letter of RFC 9112."""

from __future__ import annotations

import itertools
import json
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

DEADLINE_S = 15.0

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) ([\t\x20-\x7e\x80-\xff]*)")
_FIELD = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*"
    rb"((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
_IMF_DATE = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d GMT"
)
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")


class Truncated(AssertionError):
    """The connection ended before the response did."""


@dataclass
class Response:
    """One response as it was on the wire.

    Attributes:
        framing: how its end was told: ``length``, ``chunked``, ``close`` or ``none`` (no body by rule).
        interim: the statuses of the 1xx responses before it.
    """

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    framing: str = "none"
    interim: list[int] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Return the values of a field, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str | None:
        """Return the value of a field that may be there once."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} is repeated: {values}"
        return values[0] if values else None

    @property
    def closes(self) -> bool:
        """Whether it announced the connection's end."""
        return "close" in [member.strip().lower() for value in self.all("Connection") for member in value.split(",")]

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def json(self) -> Any:
        """The body from JSON."""
        return json.loads(self.body)


class RawClient:
    """A TCP or Unix connection with a deadline on every wait. A context manager."""

    def __init__(self, address: Any, deadline_s: float = DEADLINE_S) -> None:
        family = (
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        )
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(deadline_s)
            self.sock.connect(address)
            if family != socket.AF_UNIX:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            self.sock.close()
            raise
        self.deadline_s = deadline_s
        self._buffer = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def reset(self) -> None:
        """Close the connection with a reset, as a client that crashed does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def half_close(self) -> None:
        """Send no more, go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def send(self, data: bytes, *, step: int = 0, cuts: Iterable[int] = ()) -> None:
        """Send the bytes: whole, in pieces of ``step`` bytes, or cut at the given positions."""
        positions = sorted({0, len(data), *(range(0, len(data), step) if step else ()), *cuts})
        for start, end in itertools.pairwise(positions):
            self.sock.sendall(data[start:end])

    def offer(self, data: bytes, *, step: int = 0) -> None:
        """Send the bytes to a server that may refuse them half-way: its close is not an error of the sender."""
        try:
            self.send(data, step=step)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def request(self, target: str = "/", *, method: str = "GET", headers: str = "", body: bytes = b"") -> None:
        """Send a plain HTTP/1.1 request; ``headers`` are whole lines, each with its CRLF."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.send(f"{method} {target} HTTP/1.1\r\nHost: test\r\n{length}{headers}\r\n".encode("latin-1") + body)

    def get(self, target: str = "/", **rest: Any) -> Response:
        """Send a request and return its response."""
        self.request(target, **rest)
        return self.read_response(rest.get("method", "GET"))

    def _receive(self) -> bool:
        """Take more bytes in; False at the end of the stream."""
        data = self.sock.recv(65536)
        self._buffer += data
        return bool(data)

    def _until(self, end: bytes, what: str) -> bytes:
        while end not in self._buffer:
            if not self._receive():
                raise Truncated(f"the connection ended within {what}: {self._buffer[-300:]!r}")
        found, _, self._buffer = self._buffer.partition(end)
        return found

    def _exactly(self, size: int, what: str) -> bytes:
        parts, have = [self._buffer], len(self._buffer)
        while have < size:
            data = self.sock.recv(1 << 18)
            if not data:
                self._buffer = b""
                raise Truncated(f"the connection ended within {what}: {have} of {size} bytes")
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        self._buffer = whole[size:]
        return whole[:size]

    def _read_head(self) -> Response:
        head = self._until(b"\r\n\r\n", "a response's head")
        status_line, *lines = head.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(status_line)
        assert match, f"malformed status line {status_line!r}"
        headers = []
        for line in lines:
            found = _FIELD.fullmatch(line)
            assert found, f"malformed field {line!r}"
            headers.append((found[1].decode(), found[2].decode("latin-1")))
        return Response(int(match[1]), match[2].decode("latin-1"), headers)

    def read_interim(self) -> int:
        """Read one 1xx response and return its status."""
        response = self._read_head()
        assert 100 <= response.status < 200, response
        return response.status

    def read_response(self, method: str = "GET", *, http10: bool = False) -> Response:
        """Read the final response to a request with this method (and version), and check its framing."""
        interim = []
        response = self._read_head()
        while response.status < 200:
            assert response.one("Content-Length") is None
            assert response.one("Transfer-Encoding") is None
            interim.append(response.status)
            response = self._read_head()
        response.interim = interim
        date = response.one("Date")
        assert date, f"no Date: {response.headers}"
        assert _IMF_DATE.fullmatch(date), date
        assert response.one("Server"), f"no Server: {response.headers}"
        length, coding = response.one("Content-Length"), response.one("Transfer-Encoding")
        assert length is None or coding is None, "both Content-Length and Transfer-Encoding"
        if length is not None:
            assert re.fullmatch(r"\d+", length), length
        if response.status in (204, 304):
            assert coding is None
            assert response.status == 304 or length is None, "Content-Length in a 204 (RFC 9110 8.6)"
        if method == "HEAD" or response.status in (204, 304):
            return response
        if coding is not None:
            assert coding == "chunked"
            assert not http10, "chunked to an HTTP/1.0 client"
            response.framing = "chunked"
            response.body = self._read_chunked()
        elif length is not None:
            response.framing = "length"
            response.body = self._exactly(int(length), "a body")
        else:
            response.framing = "close"
            assert response.closes or http10, "a body that ends with the connection, without Connection: close"
            while self._receive():
                pass
            response.body, self._buffer = self._buffer, b""
        return response

    def _read_chunked(self) -> bytes:
        body = []
        while True:
            line = self._until(b"\r\n", "a chunk's head")
            assert _CHUNK_SIZE.fullmatch(line), f"malformed chunk head {line!r}"
            size = int(line, 16)
            if not size:
                assert self._until(b"\r\n", "the trailers") == b"", "the server made trailers"
                return b"".join(body)
            body.append(self._exactly(size, "a chunk"))
            assert self._exactly(2, "a chunk's end") == b"\r\n"

    def expect_close(self) -> None:
        """Fail unless the server ends the connection in good order, with nothing more on it."""
        assert self._buffer == b"", f"more than was expected: {self._buffer[:300]!r}"
        data = self.sock.recv(65536)
        assert data == b"", f"more than was expected: {data[:300]!r}"

    def expect_nothing_more(self) -> None:
        """Fail if anything comes after the responses read so far. Ends the connection from this side."""
        self.half_close()
        self.expect_close()


def timed_get(address: Any, target: str = "/") -> float:
    """Return how long a new client waits for an answer, connecting included, in seconds."""
    start = time.perf_counter()
    with RawClient(address) as client:
        assert client.get(target).status == 200
    return time.perf_counter() - start
