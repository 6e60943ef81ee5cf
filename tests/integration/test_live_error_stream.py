"""`wsgi.errors`, `sys.stdout` and `sys.stderr` as libraries find them: text streams with all that this means."""

from __future__ import annotations

from pathlib import Path

import pytest
from server import Connect, Start, wait_until

# What people's libraries do with a stream. Each is called with one; what it writes contains its name.
USES = """\
import code, contextlib, faulthandler, io, json, logging, logging.config, os, subprocess, sys, threading, traceback

import click

def printed(stream):
    print("printed", "twice", file=stream, flush=True)

def logged(stream):
    logger = logging.getLogger("theirs")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    logger.error("logged")
    logger.removeHandler(handler)
    handler.close()

def clicked(stream):
    click.echo("clicked text", file=stream)
    click.secho("clicked colour", file=stream, fg="red")
    click.echo(b"clicked bytes", file=stream)

def dumped(stream):
    stream.write("dumped:\\\\n")
    faulthandler.dump_traceback(stream)

def enabled(stream):
    faulthandler.dump_traceback_later(3600, file=stream)
    faulthandler.cancel_dump_traceback_later()
    stream.write("enabled\\\\n")

def spawned(stream):
    subprocess.run(["sh", "-c", "echo spawned >&2"], stderr=stream, check=True)

def with_statement(stream):
    with contextlib.nullcontext(stream) as same:
        same.write("with_statement\\\\n")
    stream.flush()

def redirected(stream):
    with contextlib.redirect_stderr(stream):
        print("redirected", file=sys.stderr)
        sys.stderr.buffer.write(b"redirected bytes\\\\n")
        sys.stderr.flush()

def traced(stream):
    try:
        raise LookupError("traced")
    except LookupError:
        traceback.print_exc(file=stream)

def checked(stream):
    assert isinstance(stream, io.TextIOBase)
    assert isinstance(stream.fileno(), int)
    os.fstat(stream.fileno())
    assert not stream.isatty() and not os.isatty(stream.fileno())
    assert stream.writable() and not stream.closed
    assert stream.encoding.lower().replace("-", "") == "utf8", stream.encoding
    assert isinstance(stream.errors, str) and isinstance(stream.name, str) and isinstance(stream.mode, str)
    stream.writelines(["checked\\\\n"])

def closed(stream):
    with stream:
        stream.write("closed\\\\n")
    stream.close()
    assert not stream.closed
    stream.write("closed again\\\\n")

USES = (
    printed, logged, clicked, dumped, enabled, spawned, with_statement, redirected, traced, checked,
)

def app(environ, start_response):
    stream = {"/errors": environ["wsgi.errors"], "/out": sys.stdout, "/err": sys.stderr}[environ["PATH_INFO"]]
    failures = []
    for use in (*USES, *([closed] if stream is environ["wsgi.errors"] else [])):
        try:
            use(stream)
        except BaseException as error:
            failures.append(f"{use.__name__}: {error!r}")
    stream.flush()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(failures).encode()]
""".replace("\\\\n", "\\n")
NAMES = (
    *("printed twice", "logged", "clicked text", "clicked colour", "clicked bytes", "dumped:", "enabled"),
    *("spawned", "with_statement", "redirected", "redirected bytes", "LookupError: traced", "checked"),
)
EXPECT = (r"Traceback \(most recent call last\)",)


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_libraries_find_streams(start: Start, connect: Connect, options: tuple[str, ...], tmp_path: Path) -> None:
    server = start(
        "streams:app",
        *("--error-logfile", "error.log", "--capture-output", *options),
        files={"streams.py": USES},
        expect=EXPECT,
    )
    client = connect(server.address)
    log = tmp_path / "error.log"
    wait_until(lambda: log.exists() and "ready" in log.read_text(), "the start")
    for path in ("/errors", "/out", "/err"):
        before = len(log.read_text())
        assert client.get(path).json() == []
        lines = log.read_text()[before:].splitlines()
        missing = [name for name in (*NAMES, *(["closed", "closed again"] * (path == "/errors"))) if name not in lines]
        assert missing == [], lines


def test_libraries_find_streams_where_the_log_is_the_standard_error(start: Start, connect: Connect) -> None:
    server = start("streams:app", files={"streams.py": USES}, expect=EXPECT)
    client = connect(server.address)
    for path in ("/errors", "/err"):
        before = len(server.log.lines)
        assert client.get(path).json() == []
        for name in NAMES:
            server.log.wait_for(f"^{name}$", after=before)
