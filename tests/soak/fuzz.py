"""Search for bytes that break the connection's promises, guided by coverage. Needs atheris (extra ``fuzz``).

    python -m tests.soak fuzz [--seconds 60] [--keep DIRECTORY] [FILE...]

The seeds are the cases of tests/corpus, tests/corpus/oracle.py says what a breach is. With files, runs just those (an
input that was found: its path is in the report). --keep keeps the inputs that reached new code, to go on from them
another time.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from bench.table import options_of

LONGEST = 1024
WORDS = (
    *("GET ", "POST ", "HEAD ", "OPTIONS * ", "CONNECT ", "http://", " HTTP/1.1", " HTTP/1.0", "\r\n", "\r\n\r\n"),
    *("Host: ", "Content-Length: ", "Transfer-Encoding: ", "chunked", "Connection: ", "close", "keep-alive"),
    *("Expect: 100-continue", "Trailer: ", "Cookie: ", "0\r\n\r\n", "5\r\nhello\r\n", ';a="b"', "X_Y: "),
)


def fuzz(arguments: list[str]) -> None:
    """Run libFuzzer in this process, which it ends."""
    import atheris

    with atheris.instrument_imports(include=["wsgiserv"]):
        from oracle import examine

    atheris.Setup([sys.argv[0], *arguments], examine)
    atheris.Fuzz()


def run(seconds: int, keep: Path | None) -> int:
    """Fuzz in a process of its own and report its figures; return its exit status."""
    from corpus import load

    with tempfile.TemporaryDirectory() as scratch:
        seeds = Path(scratch, "seeds")
        found = keep or Path(scratch, "found")
        seeds.mkdir()
        found.mkdir(parents=True, exist_ok=True)
        for case in load():
            (seeds / case.name.replace("/", "-")).write_bytes(case.data)
        words = Path(scratch, "words")
        words.write_text("".join('"' + _quoted(word) + '"\n' for word in WORDS))
        command = [sys.executable, "-m", "tests.soak", "fuzz", "--child", str(found), str(seeds)]
        # Neither among the seeds, whose directory ends with the run, nor in a working tree.
        command.append(f"-artifact_prefix={tempfile.gettempdir()}/wsgiserv-fuzz-")
        command += [f"-max_total_time={seconds}", f"-dict={words}", f"-max_len={LONGEST}", "-print_final_stats=1"]
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
    return "".join(char if char.isprintable() and char not in '"\\' else f"\\x{ord(char):02X}" for char in word)


def main() -> int:
    """Run from the command line; return the exit status."""
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2:])
        return 0
    if files := [Path(name) for name in sys.argv[1:] if Path(name).is_file()]:
        from oracle import examine

        for path in files:
            examine(path.read_bytes())
        print(f"{len(files)} inputs, no finding")
        return 0
    options = options_of(__doc__, seconds=60, keep=Path)
    if find_spec("atheris") is None:
        sys.exit("fuzz needs atheris. Install it: pip install 'wsgiserv[fuzz]'")
    return run(options.seconds, options.keep)
