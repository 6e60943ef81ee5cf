"""The corpus of request files, and a connection that is fed with bytes instead of a socket.

``GROUP/NAME.http`` holds what a client sends: its bytes escaped as in Python (``\\r \\n \\t \\\\ \\xHH``); the ends
of the file's own lines mean nothing. ``GROUP/NAME.json`` says what is right:

    rule      the section or advisory that decides
    accept    the requests that reach the application, in order: all environ keys that a request makes, and the body
    close     whether the connection is closed after the last of them
    continue  how many ``100 Continue`` a client gets that sends its body only then (0 when absent)
or
    refuse    the status of the refusal
    after     how many requests are answered before it

`python tests/corpus/corpus.py` rewrites the lists of files in docs/hardening.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
for directory in (ROOT, ROOT / "tests" / "support"):
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))

from contexts import serving as serving  # noqa: E402 - run as a script, too

from wsgiserv.net.client import Connection  # noqa: E402
from wsgiserv.net.request_reader import CLOSED, LINGERING  # noqa: E402
from wsgiserv.net.serving_context import ServingContext  # noqa: E402

HERE = Path(__file__).parent
HARDENING = ROOT / "docs" / "hardening.md"

_ESCAPE = re.compile(rb"\\(?:([rnt\\])|x([0-9a-f]{2}))|\n|([^\\\n]+)")
_NAMED = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}

# What the server puts into every environ by itself; all other upper-case keys are made from the request.
SERVERS_KEYS = frozenset({"SERVER_NAME", "SERVER_PORT", "SERVER_SOFTWARE", "REMOTE_ADDR", "REMOTE_PORT"})


_STATUS = re.compile(rb"^HTTP/1\.1 ([1-5][0-9]{2}) ", re.MULTILINE)

Outcome = tuple[list[tuple[dict[str, str], str]], list[int], bool]


@dataclass(frozen=True)
class Case:
    """One file and its sidecar.

    Attributes:
        accept: (environ, body) of each request that is answered 200; empty for a refusal.
        refuse: the status of the refusal, 0 for none.
        after: requests answered before the refusal.
    """

    name: str
    data: bytes
    rule: str
    accept: list[tuple[dict[str, str], str]]
    close: bool
    refuse: int
    after: int
    continues: int

    @property
    def statuses(self) -> list[int]:
        """The statuses of the final responses."""
        return [200] * (len(self.accept) or self.after) + ([self.refuse] if self.refuse else [])


def unescape(text: bytes) -> bytes:
    """Return the bytes that the text of a ``.http`` file stands for."""
    parts, position = [], 0
    while position < len(text):
        match = _ESCAPE.match(text, position)
        assert match is not None, f"unknown escape at {text[position : position + 10]!r}"
        named, digits, plain = match.groups()
        parts.append(_NAMED[named] if named else bytes.fromhex(digits.decode()) if digits else plain or b"")
        position = match.end()
    return b"".join(parts)


def load() -> list[Case]:
    """Return all cases, sorted by name; a file without its sidecar is an error, and the other way round."""
    cases = []
    for path in sorted(HERE.glob("*/*.http")):
        sidecar = json.loads(path.with_suffix(".json").read_text())
        assert ("accept" in sidecar) != ("refuse" in sidecar), path
        cases.append(
            Case(
                path.relative_to(HERE).with_suffix("").as_posix(),
                unescape(path.read_bytes()),
                sidecar["rule"],
                [(item["environ"], item["body"]) for item in sidecar.get("accept", [])],
                sidecar.get("close", "refuse" in sidecar),
                sidecar.get("refuse", 0),
                sidecar.get("after", 0),
                sidecar.get("continue", 0),
            )
        )
    assert len(cases) == len(list(HERE.glob("*/*.json"))), "a sidecar without its .http file"
    return cases


def requests_keys(environ: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of an environ that the request made."""
    return {key: value for key, value in environ.items() if key.isupper() and key not in SERVERS_KEYS}


class Wire:
    """What a connection takes for its socket: bytes in from a list, bytes out to a list."""

    def __init__(self) -> None:
        self.incoming: deque[bytes] = deque()
        self.sent: list[bytes] = []
        self.ended = False
        self.shut = False

    def fileno(self) -> int:
        return -1

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self.incoming:
            if self.ended:
                return b""
            raise BlockingIOError
        data = self.incoming.popleft()
        if len(data) > size:
            self.incoming.appendleft(data[size:])
        return data[:size]

    def send(self, data: bytes, flags: int = 0) -> int:
        assert not self.shut, "something was sent after the end of the responses"
        self.sent.append(bytes(data))
        return len(data)

    def sendmsg(self, buffers: Iterable[bytes], ancillary: object = (), flags: int = 0) -> int:
        return self.send(b"".join(buffers))

    def setsockopt(self, *option: object) -> None:
        pass

    def shutdown(self, how: int) -> None:
        self.shut = True

    def close(self) -> None:
        self.shut = True


@dataclass
class Recorder:
    """An application that remembers what it was called with and answers with an empty 200."""

    calls: list[tuple[dict[str, str], str]] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read()
        self.calls.append((requests_keys(environ), body.decode("latin-1")))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return []


class Feed:
    """One connection without a socket: the caller is the client and the loop."""

    def __init__(self, context: ServingContext, trusted: bool = False) -> None:
        self.wire = Wire()
        self._waiting: list[Connection] = []
        base = {"SERVER_NAME": "s", "SERVER_PORT": "1", "wsgi.url_scheme": "http"}
        peer = {"REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "7"}
        wire: Any = self.wire
        self.connection = Connection(context, self, wire, base, peer, b"192.0.2.1", trusted)

    # ---- the connection's Loop

    def watch(self, connection: Connection, interest: int) -> None:
        connection.interest = interest

    def resume(self, connection: Connection) -> None:
        self._waiting.append(connection)

    def forget(self, connection: Connection) -> None:
        pass

    def wait_writable(self, connection: Connection) -> bool:
        raise AssertionError("a wire takes everything")

    # ---- the client

    @property
    def closed(self) -> bool:
        """Whether the connection takes no further request."""
        return self.connection.state in (LINGERING, CLOSED)

    @property
    def last_method(self) -> str:
        """HEAD if the last request, refused or not, is known to be one, else GET: how its response is to be read."""
        line = self.connection.reader.line
        return "HEAD" if line is not None and line.is_head else "GET"

    @property
    def sent(self) -> bytes:
        """All that the connection has sent."""
        return b"".join(self.wire.sent)

    def feed(self, *pieces: bytes) -> None:
        """Let the pieces arrive one after the other, each in a turn of the loop's own."""
        for piece in pieces:
            if piece:
                self.wire.incoming.append(piece)
            while self.wire.incoming and self.connection.state != CLOSED:
                self._turn()

    def end(self) -> None:
        """Let the client send no more."""
        self.wire.ended = True
        if self.connection.state != CLOSED:
            self._turn()

    def _turn(self) -> None:
        if self.connection.receive():
            self.connection.run()
        while self._waiting:
            connection = self._waiting.pop(0)
            if connection.advance():
                connection.run()


def statuses(sent: bytes) -> list[int]:
    """Return the statuses of responses none of whose bodies looks like a status line."""
    return [int(found) for found in _STATUS.findall(sent)]


def outcome(context: ServingContext, pieces: Iterable[bytes]) -> Outcome:
    """Feed the pieces to a new connection: what its `Recorder` saw, what was answered, whether it is closed."""
    recorder = context.app
    assert isinstance(recorder, Recorder)
    recorder.calls.clear()
    feed = Feed(context)
    feed.feed(*pieces)
    return list(recorder.calls), statuses(feed.sent), feed.closed


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Yield the ways to feed ``data``: byte by byte, and in two pieces split at every position.

    Of long data the splits are those near both ends and every 97th.
    """
    yield [data[i : i + 1] for i in range(len(data))]
    for i in range(1, len(data)):
        if i < 300 or i > len(data) - 150 or i % 97 == 0:
            yield [data[:i], data[i:]]


def listing(cases: Iterable[Case], group: str) -> str:
    """Return the files of one group as docs/hardening.md shows them."""
    mine = [case for case in cases if case.name.startswith(group + "/")]
    good = ", ".join(f"`{case.name.partition('/')[2]}`" for case in mine if not case.refuse)
    bad = ", ".join(f"`{case.name.partition('/')[2]}` {case.refuse}" for case in mine if case.refuse)
    parts = [f"Accepted: {good}." if good else "", f"Refused: {bad}." if bad else ""]
    return "\n\n".join(part for part in parts if part)


_LISTED = re.compile(r"(<!-- corpus: ([\w-]+) -->).*?(<!-- end -->)", re.DOTALL)


def with_listings(text: str) -> str:
    """Return the text of docs/hardening.md with its lists of files renewed."""
    cases = load()
    text = re.sub(
        r"(<!-- counts -->).*?(<!-- end -->)",
        rf"\g<1>{len(cases)} files: {sum(not case.refuse for case in cases)} accepted, "
        rf"{sum(bool(case.refuse) for case in cases)} refused\g<2>",
        text,
    )
    return _LISTED.sub(lambda found: f"{found[1]}\n\n{listing(cases, found[2])}\n\n{found[3]}", text)


if __name__ == "__main__":
    HARDENING.write_text(with_listings(HARDENING.read_text()))
