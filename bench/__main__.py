"""Lists the measurements, and runs one: ``python -m bench NAME [options]``."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

HERE = Path(__file__).parent
SOAK = HERE.parent / "tests" / "soak"

# Measurements that are others with some options given: bench/NAME is bench/FIRST and the rest.
PRESETS = {
    "hello": "compare --here --scenario hello --server wsgiserv|gunicorn",
    "waiting": "compare --here --scenario io64,io500 --server wsgiserv.(threads|gevent)|gunicorn.g",
    "preload": "footprint --preload --reload --apps site --workers 4 --requests 200",
    "report": "compare --from",
}


def programs(directory: Path = HERE) -> dict[str, str]:
    """Return the modules with a ``main``, and the first line of their docstrings."""
    found = {}
    for path in sorted(directory.glob("[!_]*.py")):
        tree = ast.parse(path.read_bytes())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def run(command: str, name: str, module: str) -> int:
    """Run the ``main`` of a module as a command, with the rest of the command line."""
    sys.argv[0:2] = [f"python -m {command} {name}"]
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # rows are seen as they come
    status: int | None = import_module(module).main()
    return status or 0


def main() -> int:
    """Run from the command line; return the exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in PRESETS:
        name, *options = PRESETS[name].split()
        sys.argv[1:2] = [name, *options]
    if name in programs():
        return run("bench", name, f"bench.{name}")
    if name in programs(SOAK):
        return run("tests.soak", name, f"tests.soak.{name}")
    out = sys.stdout if name in {"-h", "--help"} else sys.stderr
    if out is sys.stderr:
        print(f"there is no measurement {name!r}", file=out)
    print("usage: python -m bench NAME [options]; NAME --help says more\n", file=out)
    lines = {**programs(), **{name: f"python -m bench {does}" for name, does in PRESETS.items()}}
    for each, does in lines.items():
        print(f"  {each:10}  {does}", file=out)
    print("\nSoak runs, by python -m tests.soak NAME or as well from here:\n", file=out)
    for each, does in programs(SOAK).items():
        print(f"  {each:10}  {does}", file=out)
    return 0 if out is sys.stdout else 2


if __name__ == "__main__":
    sys.exit(main())
