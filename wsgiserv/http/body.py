"""The framing of a request's body (RFC 9112 §6-§7).

`ChunkedDecoder` and `LengthDecoder` are fed with bytes as they come, and call a sink with the body's.
"""

from __future__ import annotations

from collections.abc import Callable
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


class ChunkedDecoder:
    """Decodes one chunked body, fed with bytes as they come.

    Args:
        sink: called with each run of decoded bytes.
        limit: most decoded bytes (``limit_request_body``); 0 means no limit.
        trailer_fields: most trailer fields (``limit_request_fields``).
        trailer_size: longest trailer field in bytes (``limit_request_field_size``).

    Attributes:
        length: decoded bytes so far.
        done: whether the body has ended, trailers included.
    """

    __slots__ = (
        "_extensions",
        "_fields",
        "_left",
        "_pending",
        "_sink",
        "_state",
        "_trailer",
        "done",
        "length",
        "limits",
    )

    def __init__(
        self, sink: Callable[[bytes], object], limit: int, trailer_fields: int, trailer_size: int
    ) -> None:
        self._sink = sink
        self.limits = (limit, trailer_fields, trailer_size)
        self._state = _SIZE
        self._left = 0
        self._pending = b""  # the beginning of a line or a CRLF
        self._extensions = 0
        self._trailer = 0
        self._fields = 0
        self.length = 0
        self.done = False

    def redirect(self, sink: Callable[[bytes], object]) -> None:
        """Pass decoded bytes to ``sink`` from the next `feed` on."""
        self._sink = sink

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
                self._sink(data[position : position + taken])
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
        """Refuse early what no further byte can make valid; bounds the bytes kept, too."""
        if STRAY.search(line):
            raise ProtocolError(400, "stray control character in a chunked body")
        if self._state == _SIZE:
            if len(line) > _LONGEST_CHUNK_LINE:
                raise ProtocolError(400, "chunk line too long")
        elif len(line) > self.limits[2] + 1:
            raise ProtocolError(431, "trailer field larger than limit_request_field_size")

    def _take_size(self, line: bytes) -> None:
        if len(line) > _LONGEST_CHUNK_LINE:
            raise ProtocolError(400, "chunk line too long")
        # Bytes that CHUNK_LINE refuses: a sign, "0x" or "_" (int() takes them, other readers do not), and a bare LF
        # in an extension, behind which some readers see a chunk (RFC 9112 §7.1.1).
        match = CHUNK_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(400, "malformed chunk line")
        digits = match.group(1)
        self._extensions += len(line) - len(digits)
        if self._extensions > _MOST_EXTENSION_BYTES:
            raise ProtocolError(400, "too many bytes of chunk extensions")
        size = int(digits, 16)
        self.length += size
        limit = self.limits[0]
        if limit and self.length > limit:
            raise ProtocolError(413, "request body larger than limit_request_body")
        self._left = size
        self._state = _DATA if size else _TRAILER

    def _take_trailer(self, line: bytes) -> None:
        # trailer-section = *( field-line CRLF ). As strict as the head's fields, and dropped: merged into the environ
        # they could forge headers that a proxy has checked (gevent CVE-2023-41419, eventlet CVE-2025-58068).
        self._fields += 1
        self._trailer += len(line)
        too_large = len(line) > self.limits[2] or self._trailer > _MOST_TRAILER_BYTES
        if too_large or self._fields > self.limits[1]:
            raise ProtocolError(431, "trailers too many or too large")
        if FIELD_LINE.fullmatch(line) is None:
            raise ProtocolError(400, "malformed trailer field")


class LengthDecoder:
    """Cuts a body of known length from the bytes that come, like a `ChunkedDecoder`.

    Args:
        sink: called with each run of the body's bytes.
        length: the ``Content-Length``.

    Attributes:
        left: bytes still to come.
        done: whether the body has ended.
    """

    __slots__ = ("_sink", "done", "left")

    def __init__(self, sink: Callable[[bytes], object], length: int) -> None:
        self._sink = sink
        self.left = length
        self.done = False

    def redirect(self, sink: Callable[[bytes], object]) -> None:
        """Call ``sink`` from the next `feed` on."""
        self._sink = sink

    def feed(self, data: bytes) -> bytes:
        """Take ``data`` and return what is left of it behind the body's end (empty while not `done`)."""
        left = self.left
        rest = data[left:]
        self._sink(data[:left] if rest else data)
        self.left = left = max(0, left - len(data))
        self.done = not left
        return rest
