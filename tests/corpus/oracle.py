"""The promises of a connection for any bytes, as an oracle: a breach is

an exception other than a refusal, a different outcome at a different split, a request that runs after a refusal, a
response that h11 cannot read, more or fewer responses than requests. Each input is fed whole, byte by byte, and in two
pieces, split at a place of its own choice. tests/integration/http/test_properties.py and tests/soak/fuzz.py feed it.
"""

from __future__ import annotations

from typing import Any

import h11
from corpus import Feed, Recorder, serving, statuses

from wsgiserv.http.head import HeadLimits

AFTER = b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n"
REFUSALS = {400, 413, 414, 417, 431, 501, 505}


class Breach(Exception):
    """An input for which a promise does not hold."""


def examine(data: bytes) -> None:
    """Feed one input; raise `Breach` where a promise does not hold."""
    # Small limits, so that short inputs reach them.
    recorder = Recorder()
    limits = HeadLimits(line=120, fields=8, field_size=80)
    context = serving(recorder, limits=limits, body_limit=300, body_memory=64)

    def judge(pieces: list[bytes]) -> tuple[Any, list[int], bool]:
        # To the end of the stream, and any refusal like any other: which of two faults is met first, and whether
        # before the head is complete, depends on where the reads end; what is served and refused does not.
        recorder.calls.clear()
        feed = Feed(context)
        feed.feed(*pieces)
        feed.end()
        answered = [400 if code in REFUSALS else code for code in statuses(feed.sent) if code != 100]
        return list(recorder.calls), answered, feed.closed

    whole = judge([data])
    place = data[0] * len(data) // 256 if data else 0
    for pieces in ([data[:place], data[place:]], [data[i : i + 1] for i in range(len(data))]):
        if judge(pieces) != whole:
            raise Breach(f"another outcome in pieces of {[len(piece) for piece in pieces[:2]]}: {data!r}")
    recorder.calls.clear()
    feed = Feed(context)
    feed.feed(data)
    closed, ran = feed.closed, len(recorder.calls)
    feed.feed(AFTER)
    feed.end()
    if closed and len(recorder.calls) != ran:
        raise Breach(f"a request ran after the connection's end: {data!r}")
    if not feed.closed:
        raise Breach(f"the connection outlives its client: {data!r}")
    read(feed.sent, [environ["REQUEST_METHOD"] for environ, _ in recorder.calls], feed.last_method, data)


def read(sent: bytes, methods: list[str], refused: str, data: bytes) -> None:
    """Read the responses with h11: one 200 for each call, and one refusal at most, of this method."""
    for number, method in enumerate([*methods, refused]):
        called = number < len(methods)
        if not called and not sent:
            break
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="HEAD" if method == "HEAD" else "GET", target="/", headers=[("Host", "h")]))
        client.send(h11.EndOfMessage())
        client.receive_data(sent)
        client.receive_data(b"")
        status = 0
        try:
            while not isinstance(found := client.next_event(), h11.EndOfMessage):
                if isinstance(found, h11.Response):
                    status = found.status_code
                elif not isinstance(found, (h11.InformationalResponse, h11.Data)):
                    raise Breach(f"a response is missing after {sent!r} to {data!r}")
        except h11.RemoteProtocolError as error:
            raise Breach(f"h11 cannot read {sent!r} ({error}) to {data!r}") from error
        if status != 200 if called else status not in REFUSALS:
            raise Breach(f"status {status} in {sent!r} to {data!r}")
        sent = client.trailing_data[0]
    if sent:
        raise Breach(f"a response to nothing, {sent!r}, to {data!r}")
