"""The framing of a request's body (RFC 9112 §6-§7).

`ChunkedDecoder` and `LengthDecoder` are fed with bytes as they come, and call a sink with the body's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wsgiserv.errors import ProtocolError
from wsgiserv.http.grammar import CHUNK_LINE, FIELD_LINE, STRAY

# A chunk line is a size and, hardly ever, an extension. Both caps answer clients that send one byte of
# data per kilobyte of extensions (Go CVE-2023-39326, puma CVE-2024-21647).
_LONGEST_CHUNK_LINE: Final = 512
_MOST_EXTENSION_BYTES: Final = 16 * 1024
_MOST_TRAILER_BYTES: Final = 16 * 1024

# chunked-body = *chunk last-chunk trailer-section CRLF; chunk = chunk-size [ chunk-ext ] CRLF chunk-data CRLF
_SIZE, _DATA, _DATA_END, _TRAILER = range(4)


@dataclass(slots=True, eq=False)
class ChunkedDecoder:
    """Decodes one chunked body, fed with bytes as they come.

    Attributes:
        sink: called with each run of decoded bytes.
        limit: most decoded bytes (``limit_request_body``); 0 means no limit.
        trailer_fields: most trailer fields (``limit_request_fields``).
        trailer_size: longest trailer field in bytes (``limit_request_field_size``).
        length: decoded bytes so far.
        done: whether the body has ended, trailers included.
    """

    sink: Callable[[bytes], object]
    limit: int
    trailer_fields: int
    trailer_size: int
    length: int = 0
    done: bool = False
    _state: int = _SIZE
    _left: int = 0  # of the chunk's data
    # The beginning of a line or a CRLF. A client may send one byte at a time: `_check_partial` bounds it.
    _pending: bytes = b""
    _extension_bytes: int = 0
    _trailer_bytes: int = 0
    _fields: int = 0

    def feed(self, data: bytes) -> bytes:
        """Decode ``data``.

        Returns:
            The bytes behind the body's end; empty while it is not `done`.

        Raises:
            ProtocolError: 400 malformed, 413 larger than the limit, 431 trailers too large.
        """
        if self._pending:
            data, self._pending = self._pending + data, b""
        position, end = 0, len(data)
        while position < end:
            state = self._state
            if state == _DATA:
                taken = min(self._left, end - position)
                self.sink(data[position : position + taken])
                position += taken
                self._left -= taken
                if self._left == 0:
                    self._state = _DATA_END
            elif state == _DATA_END:
                # The data ends in CRLF exactly; anything else is a chunk line for another reader.
                if not b"\r\n".startswith(data[position : position + 2]):
                    raise ProtocolError(400, "chunk data does not end with CRLF")
                if end - position < 2:
                    break
                position += 2
                self._state = _SIZE
            else:
                eol = data.find(b"\r\n", position)
                if eol < 0:
                    self._check_partial(data[position:])
                    break
                line = data[position:eol]
                position = eol + 2
                if state == _SIZE:
                    self._take_size(line)
                elif line:
                    self._take_trailer(line)
                else:
                    self.done = True
                    return data[position:]
        self._pending = data[position:]
        return b""

    def _check_partial(self, line: bytes) -> None:
        """Refuse a line without its end early, if no further byte can make it valid."""
        # A client that waits for the answer would never send the rest; and the bytes kept here are bounded.
        if STRAY.search(line):
            raise ProtocolError(400, "stray control character in a chunked body")
        if self._state == _SIZE:
            _check_size_line(line)
        elif len(line) > self.trailer_size + 1:  # the CR of its CRLF may have come
            raise ProtocolError(431, "trailer field larger than limit_request_field_size")

    def _take_size(self, line: bytes) -> None:
        _check_size_line(line)
        # Bytes that CHUNK_LINE refuses: a sign, "0x" or "_" (int() takes them, other readers do not), and a bare LF
        # in an extension, behind which some readers see a chunk (RFC 9112 §7.1.1).
        match = CHUNK_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(400, "malformed chunk line")
        self._extension_bytes += len(line) - len(match[1])
        if self._extension_bytes > _MOST_EXTENSION_BYTES:
            raise ProtocolError(400, "too many bytes of chunk extensions")
        self._left = int(match[1], 16)
        self.length += self._left
        # By the announced size: a body that is too large is refused before its data has come.
        if self.limit and self.length > self.limit:
            raise ProtocolError(413, "request body larger than limit_request_body")
        self._state = _DATA if self._left else _TRAILER

    def _take_trailer(self, line: bytes) -> None:
        # trailer-section = *( field-line CRLF ). As strict as the head's fields, and dropped: merged into the environ
        # they could forge headers that a proxy has checked (gevent CVE-2023-41419, eventlet CVE-2025-58068).
        self._fields += 1
        self._trailer_bytes += len(line)
        too_large = len(line) > self.trailer_size or self._trailer_bytes > _MOST_TRAILER_BYTES
        if too_large or self._fields > self.trailer_fields:
            raise ProtocolError(431, "trailers too many or too large")
        if FIELD_LINE.fullmatch(line) is None:
            raise ProtocolError(400, "malformed trailer field")


def _check_size_line(line: bytes) -> None:
    if len(line) > _LONGEST_CHUNK_LINE:
        raise ProtocolError(400, "chunk line too long")


@dataclass(slots=True, eq=False)
class LengthDecoder:
    """Cuts a body of known length from the bytes that come, like a `ChunkedDecoder`.

    Attributes:
        sink: called with each run of the body's bytes.
        left: bytes still to come; the ``Content-Length`` at first.
        done: whether the body has ended.
    """

    sink: Callable[[bytes], object]
    left: int
    done: bool = False

    def feed(self, data: bytes) -> bytes:
        """Take ``data`` and return what is left of it behind the body's end (empty while not `done`)."""
        rest = data[self.left :]
        self.sink(data[: self.left] if rest else data)
        self.left = max(0, self.left - len(data))
        self.done = not self.left
        return rest
