"""The applications under test: one WSGI callable with a route for each thing an application may do."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote
from wsgiref.validate import validator

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

TEXT = [("Content-Type", "text/plain")]
COUNTS: Counter[str] = Counter()


def argument(environ: Environ) -> str:
    """The query string, decoded."""
    return unquote(environ["QUERY_STRING"])


def reply_json(start_response: StartResponse, value: Any) -> list[bytes]:
    """Answer with a value in JSON."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(value).encode()]


class Body:
    """An iterable that counts its close() under ``key`` and fails before chunk ``fail_at``."""

    def __init__(self, chunks: Iterable[bytes], key: str = "", fail_at: int = -1) -> None:
        self.chunks = list(chunks)
        self.key = key
        self.fail_at = fail_at

    def __iter__(self) -> Iterator[bytes]:
        for number, chunk in enumerate(self.chunks):
            if number == self.fail_at:
                raise ValueError("the iterable fails on purpose")
            yield chunk

    def close(self) -> None:
        """Count."""
        COUNTS["closed " + self.key] += 1


class SizedBody(Body):
    """The same with a length, as a list has."""

    def __len__(self) -> int:
        return len(self.chunks)


def hello(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [*TEXT, ("X-Pid", str(os.getpid()))])
    return [b"hello\n"]


def show_environ(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    plain = (str, int, bool, tuple)
    shown = {key: value if isinstance(value, plain) else repr(type(value)) for key, value in environ.items()}
    types = {key: type(value).__name__ for key, value in environ.items()}
    return reply_json(start_response, {"environ": shown, "types": types})


def echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return [environ["wsgi.input"].read()]


def echo_by_length(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return [environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))]


def echo_stream(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The body by 10,000 bytes, as it comes: no length is known, so it is chunked to HTTP/1.1."""
    start_response("200 OK", TEXT)
    while data := environ["wsgi.input"].read(10_000):
        yield data


def unread(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return [b"unread"]


def use_input(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Carry out a list of [method, *arguments] on wsgi.input; answer what each returned."""
    results: list[Any] = []
    stream = environ["wsgi.input"]
    for name, *arguments in json.loads(argument(environ)):
        value = list(stream) if name == "iter" else getattr(stream, name)(*arguments)
        results.append([line.decode() for line in value] if isinstance(value, list) else value.decode())
    return reply_json(start_response, results)


def respond(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Respond as the JSON object in the query says.

    Keys: status, headers, chunks (texts, latin-1), write (texts given to write()), fail_at (chunk number
    before which the iterable raises), key (close counter), how (list, sized, iterable, generator).
    """
    spec = json.loads(argument(environ))
    chunks = [chunk.encode("latin-1") for chunk in spec.get("chunks", [])]
    headers = [(name, value) for name, value in spec.get("headers", TEXT)]
    write = start_response(spec.get("status", "200 OK"), headers)
    for text in spec.get("write", []):
        write(text.encode("latin-1"))
    how = spec.get("how", "list")
    if how == "list":
        return chunks
    if how == "generator":
        return (chunk for chunk in chunks)
    body = SizedBody if how == "sized" else Body
    return body(chunks, spec.get("key", ""), spec.get("fail_at", -1))


def big(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """As many bytes as the query says, in one piece, with their length."""
    size = int(argument(environ))
    start_response("200 OK", [*TEXT, ("Content-Length", str(size))])
    return [b"x" * size]


def stream(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """``number,size``: so many chunks of this size from an iterable that counts its close."""
    number, size = map(int, argument(environ).split(","))
    start_response("200 OK", TEXT)
    return Body((b"%d" % (index % 10) * size for index in range(number)), "stream")


def endless(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """A stream that only its client's leaving ends."""
    start_response("200 OK", TEXT)

    class Endless(Body):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b"x" * 65536

    return Endless([], argument(environ))


def count(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Count a call under the query's name."""
    COUNTS[argument(environ)] += 1
    start_response("200 OK", TEXT)
    return [b"counted"]


def counts(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return reply_json(start_response, COUNTS)


def file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The query's ``path,block size[,offset[,length]]`` through wsgi.file_wrapper."""
    path, block, *rest = argument(environ).split(",")
    opened = open(path, "rb")  # noqa: SIM115 (the server closes it)
    headers = list(TEXT)
    if rest:
        opened.seek(int(rest[0]))
    if rest[1:]:
        headers.append(("Content-Length", rest[1]))
    start_response("200 OK", headers)
    return environ["wsgi.file_wrapper"](opened, int(block))


def log(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Write the query to wsgi.errors."""
    environ["wsgi.errors"].write(argument(environ) + "\n")
    environ["wsgi.errors"].flush()
    environ["wsgi.errors"].writelines(["second ", "line\n"])
    start_response("200 OK", TEXT)
    return [b"logged"]


def printed(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Print the query to the standard output and the standard error."""
    print("out", argument(environ), flush=True)
    print("err", argument(environ), file=sys.stderr, flush=True)
    start_response("200 OK", TEXT)
    return [b"printed"]


def sleep(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Say in the log that it has begun, then take the query's time, in seconds."""
    environ["wsgi.errors"].write(f"sleeping {argument(environ)}\n")
    environ["wsgi.errors"].flush()
    time.sleep(float(argument(environ)))
    start_response("200 OK", [*TEXT, ("X-Pid", str(os.getpid()))])
    return [b"slept"]


def hang(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Block the whole thread for ever, in gevent too: nothing patches os.read."""
    os.read(os.pipe()[0], 1)
    return []


# What applications do wrong. Each costs its own request and nothing else.


def crash(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    raise ValueError("the application fails on purpose")


def crash_started(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    raise ValueError("the application fails on purpose")


def crash_written(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("200 OK", TEXT)
    write(b"some of it")
    raise ValueError("the application fails on purpose")


def leave(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    sys.exit(3)


def leave_later(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    yield b"first"
    sys.exit(3)


def interrupt(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    raise KeyboardInterrupt


class Odd(BaseException):
    """Not an Exception."""


def base_exception(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    raise Odd("on purpose")


def generator_exit(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    raise GeneratorExit


def none(environ: Environ, start_response: StartResponse) -> Any:
    start_response("200 OK", TEXT)


def number(environ: Environ, start_response: StartResponse) -> Any:
    start_response("200 OK", TEXT)
    return 5


def text_items(environ: Environ, start_response: StartResponse) -> Any:
    start_response("200 OK", TEXT)
    return ["text"]


def text_body(environ: Environ, start_response: StartResponse) -> Any:
    start_response("200 OK", TEXT)
    return "text"


def never_started(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return [b"no status"]


def never_started_empty(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return []


def started_twice(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    start_response("201 Created", TEXT)
    return [b"twice"]


def written_text(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", TEXT)("text")  # type: ignore[arg-type]
    return []


def odd_headers(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Give start_response what the query names."""
    wrong: dict[str, tuple[Any, Any]] = {
        "bytes status": (b"200 OK", TEXT),
        "int status": (200, TEXT),
        "no status": (None, TEXT),
        "bytes name": ("200 OK", [(b"X-A", "b")]),
        "bytes value": ("200 OK", [("X-A", b"b")]),
        "int value": ("200 OK", [("X-A", 5)]),
        "none value": ("200 OK", [("X-A", None)]),
        "no headers": ("200 OK", None),
        "not pairs": ("200 OK", ["X-A: b"]),
        "not latin-1": ("200 OK", [("X-A", "\u20ac")]),
        "status not latin-1": ("200 \u20ac", TEXT),
    }
    start_response(*wrong[argument(environ)])
    return [b"odd"]


# What applications do right, but seldom.


def started_late(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """start_response is called by the first next() of the iterable."""
    start_response("200 OK", TEXT)
    yield b"late"


def replaced(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The response is replaced through exc_info before anything was sent."""
    start_response("200 OK", [*TEXT, ("X-First", "1")])
    try:
        raise ValueError("handled by the application")
    except ValueError:
        start_response("503 Service Unavailable", [*TEXT, ("X-Second", "2")], sys.exc_info())
    return [b"replaced"]


def replaced_late(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The same when the head has left already: start_response raises it again."""
    start_response("200 OK", TEXT)
    yield b"some of it"
    try:
        raise ValueError("too late on purpose")
    except ValueError:
        start_response("500 Internal Server Error", TEXT, sys.exc_info())
    yield b"never"


def empty_first(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Empty strings before the body: the head must wait for the first that is not empty."""
    start_response("200 OK", TEXT)
    yield b""
    yield b""
    try:
        raise ValueError("handled by the application")
    except ValueError:
        start_response("503 Service Unavailable", TEXT, sys.exc_info())
    yield b"replaced"


ROUTES = {
    "": hello,
    "environ": show_environ,
    "echo": echo,
    "echo-by-length": echo_by_length,
    "echo-stream": echo_stream,
    "input": use_input,
    **{
        function.__name__.replace("_", "-"): function
        for function in (
            *(unread, respond, big, stream, endless, count, counts, file, log, printed, sleep, hang),
            *(crash, crash_started, crash_written, leave, leave_later, interrupt, base_exception, generator_exit),
            *(none, number, text_items, text_body, never_started, never_started_empty, started_twice, written_text),
            *(odd_headers, started_late, replaced, replaced_late, empty_first),
        )
    },
}


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by the path's first segment."""
    name = environ["PATH_INFO"].lstrip("/").partition("/")[0]
    return ROUTES.get(name, show_environ)(environ, start_response)


validated = validator(app)
