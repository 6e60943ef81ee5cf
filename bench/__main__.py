"""Lists the benchmarks, and runs one: ``python -m bench NAME ...`` is ``python -m bench.NAME ...``."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def programs() -> dict[str, str]:
    """Return the modules that can be run, with the first line of what they say of themselves."""
    found = {}
    for path in sorted(HERE.glob("[!_]*.py")):
        tree = ast.parse(path.read_bytes())
        # What has no "if __name__ ..." at its end is imported by the others.
        last = tree.body[-1]
        if isinstance(last, ast.If) and "__main__" in ast.unparse(last.test):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main() -> int:
    """Run from the command line; return the exit status."""
    found = programs()
    if len(sys.argv) > 1 and sys.argv[1] in found:
        sys.argv[0:2] = [f"python -m bench {sys.argv[1]}"]
        runpy.run_module(f"bench.{sys.argv[0].rpartition(' ')[2]}", run_name="__main__", alter_sys=True)
        return 0
    asked = sys.argv[1:2]
    out = sys.stdout if not asked or asked[0] in {"-h", "--help"} else sys.stderr
    if out is sys.stderr:
        print(f"there is no benchmark {asked[0]!r}", file=out)
    print("usage: python -m bench NAME [arguments]; NAME --help says more\n", file=out)
    width = max(map(len, found))
    for name, says in found.items():
        print(f"  {name:{width}}  {says}", file=out)
    return 0 if out is sys.stdout else 2


if __name__ == "__main__":
    sys.exit(main())
