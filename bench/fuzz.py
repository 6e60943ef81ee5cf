"""A coverage-guided search for bytes that break the connection's promises. Needs atheris (extra ``fuzz``).

    python -m bench.fuzz [--seconds 60] [--keep DIRECTORY] [FILE...]

The seeds are the cases of tests/corpus. Each input is fed whole, byte by byte, and in two pieces split at a place that
it chooses itself; a breach is: an exception other than a refusal, a different outcome at a different split, a
request that runs after a refusal, a response that h11 cannot read, more or fewer responses than requests.

With files, runs just those (an input that was found: its path is in the report). ``--keep`` keeps the inputs that
reached new code, to go on from them another time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "corpus"))

LONGEST = 1024
AFTER = b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n"
REFUSALS = {400, 413, 414, 417, 431, 501, 505}

WORDS = (
    *(
        "GET ",
        "POST ",
        "HEAD ",
        "OPTIONS * ",
        "CONNECT ",
        "http://",
        " HTTP/1.1",
        " HTTP/1.0",
        "\r\n",
        "\r\n\r\n",
    ),
    *("Host: ", "Content-Length: ", "Transfer-Encoding: ", "chunked", "Connection: ", "close", "keep-alive"),
    *("Expect: 100-continue", "Trailer: ", "Cookie: ", "0\r\n\r\n", "5\r\nhello\r\n", ';a="b"', "X_Y: "),
)


class Breach(Exception):
    """An input for which a promise does not hold."""


def seed() -> dict[str, bytes]:
    """Return the corpus by name."""
    from corpus import load

    return {case.name.replace("/", "-"): case.data for case in load()}


def examine(data: bytes) -> None:
    """Feed one input; raise `Breach` where a promise does not hold."""
    from corpus import Feed, Recorder, serving, statuses

    from wsgiserv.http.head import HeadLimits

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
    import h11

    for number, method in enumerate([*methods, refused]):
        called = number < len(methods)
        if not called and not sent:
            break
        client = h11.Connection(h11.CLIENT)
        client.send(
            h11.Request(method="HEAD" if method == "HEAD" else "GET", target="/", headers=[("Host", "h")])
        )
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


def fuzz(arguments: list[str]) -> None:
    """Run libFuzzer in this process; it ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["wsgiserv"]):
        import wsgiserv.net.client  # noqa: F401 - imported to be instrumented

    def test_one_input(data: bytes) -> None:
        examine(data)

    atheris.Setup([sys.argv[0], *arguments], test_one_input)
    atheris.Fuzz()


def run(seconds: int, keep: Path | None) -> int:
    """Fuzz in a process of its own and report its figures; return its exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        seeds = Path(scratch, "seeds")
        found = keep or Path(scratch, "found")
        seeds.mkdir()
        found.mkdir(parents=True, exist_ok=True)
        for name, data in seed().items():
            (seeds / name).write_bytes(data)
        words = Path(scratch, "words")
        words.write_text("".join('"' + _quoted(word) + '"\n' for word in WORDS))
        command = [sys.executable, "-m", "bench.fuzz", "--child", str(found), str(seeds)]
        # Neither among the seeds, whose directory ends with the run, nor in a working tree.
        command.append(f"-artifact_prefix={tempfile.gettempdir()}/wsgiserv-fuzz-")
        command += [
            f"-max_total_time={seconds}",
            f"-dict={words}",
            f"-max_len={LONGEST}",
            "-print_final_stats=1",
        ]
        child = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
        executions = re.search(r"number_of_executed_units: (\d+)", child.stderr)
        covered = re.findall(r"cov: (\d+)", child.stderr)
        print(
            f"{executions[1] if executions else 'no'} executions, {len(list(seeds.iterdir()))} seeds, "
            f"{len(list(found.iterdir()))} inputs that reached new code, {covered[-1] if covered else 0} edges, "
            + ("no finding" if child.returncode == 0 else f"FINDING (status {child.returncode})")
        )
        if child.returncode:
            print(child.stderr[-6000:], file=sys.stderr)
        return child.returncode


def _quoted(word: str) -> str:
    return "".join(
        char if char.isprintable() and char not in '"\\' else f"\\x{ord(char):02X}" for char in word
    )


def main() -> int:
    """The command."""
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(
        prog="python -m bench.fuzz", description="Coverage-guided search, see docs/hardening.md."
    )
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: 60)")
    parser.add_argument("--keep", type=Path, help="directory of the inputs that reached new code")
    parser.add_argument("files", nargs="*", type=Path, help="run these inputs only")
    options = parser.parse_args()
    if options.files:
        for path in options.files:
            examine(path.read_bytes())
        print(f"{len(options.files)} inputs, no finding")
        return 0
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("bench.fuzz needs atheris. Install it: pip install 'wsgiserv[fuzz]'", file=sys.stderr)
        return 2
    return run(options.seconds, options.keep)


if __name__ == "__main__":
    sys.exit(main())
