"""Start programs of the field under wsgiserv, and use each with its own client.

    python -m tests.soak programs [--only 'sentry|moto'] [--venvs build/programs]

Each program has a virtual environment of its own, which is kept for the next run. Prints one line each: what was
installed, what was done, what came of it. Exits 1 when one does not work. PostgreSQL's programs must be there for
psycogreen; all else is installed by pip.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from fieldapps import PROGRAMS
from fieldprograms import Program, is_answering, started
from server import wait_until

from bench.servers import ROOT
from bench.table import options_of, say


def environment_for(program: Program, venvs: Path) -> tuple[Path, str]:
    """Return the environment with a program's packages, made if it is missing, and what is installed."""
    place = venvs / re.sub(r"\W+", "-", program.packages[0])
    python = place / "bin" / "python"
    if not (place / "done").exists():
        say(f"installing {' '.join(program.packages)}")
        venv.create(place, with_pip=True, clear=True)
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            *program.packages,
            str(ROOT),
        ]
        subprocess.run(command, check=True, timeout=900)
        (place / "done").touch()
    name = program.packages[0].partition("[")[0]
    code = f"from importlib.metadata import version; print(version({name!r}))"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return place, f"{name} {found}"


def try_one(name: str, program: Program, kind: str, venvs: Path) -> bool:
    """Start and use one program with one class; print the record; return whether it works."""
    place, version = environment_for(program, venvs)
    with tempfile.TemporaryDirectory(prefix="programs-") as directory:
        try:
            with started(program, kind, place, Path(directory)) as running:
                try:
                    wait_until(
                        lambda: running.server.process.poll() is not None or is_answering(running), "an answer", 90
                    )
                    seen = program.use(running)
                except Exception as error:
                    raise AssertionError(f"{error}\nThe log:\n{running.server.log.text[-4000:]}") from error
        except Exception as error:
            print(f"{name} ({version}), {kind}: FAILS: {error}", flush=True)
            return False
    print(f"{name} ({version}), {kind}: {seen}", flush=True)
    return True


def main() -> int:
    """Run from the command line; return the exit status."""
    options = options_of(__doc__, choose=("classes",), only="", venvs="build/programs")
    chosen = {name: each for name, each in PROGRAMS.items() if re.search(options.only, name)}
    venvs = Path(options.venvs).absolute()
    fine = True
    for name, program in chosen.items():
        for kind in program.classes:
            if kind in options.classes:
                fine &= try_one(name, program, kind, venvs)
    say("all is well" if fine else "not all works")
    sys.stdout.flush()
    return 0 if fine else 1
