"""Runs a soak run: ``python -m tests.soak NAME [options]``; without a name ``chaos``."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.__main__ import programs, run

if __name__ == "__main__":
    known = programs(Path(__file__).parent)
    if sys.argv[1:2] in (["-h"], ["--help"]):
        sys.exit("\n".join(f"{name:10}  {does}" for name, does in known.items()))
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        sys.argv.insert(1, "chaos")
    if sys.argv[1] not in known:
        sys.exit(f"there is no soak run {sys.argv[1]!r}; there are {', '.join(known)}")
    sys.exit(run("tests.soak", sys.argv[1], f"tests.soak.{sys.argv[1]}"))
