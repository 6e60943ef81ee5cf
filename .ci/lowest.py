"""Prints pip constraints: the lowest version that pyproject.toml accepts of each package that servers run on.

That is: the dependencies, what ``reload`` adds, and the frameworks. Test programs stay at their newest.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_BOUND = re.compile(r"^([\w.-]+)\s*>=\s*([\w.]+)")


def main() -> None:
    """Write one constraint a line."""
    project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["reload"], *extras["frameworks"]]:
        bound = _BOUND.match(requirement)
        assert bound, f"{requirement} has no lower bound"
        print(f"{bound[1]}=={bound[2]}")


if __name__ == "__main__":
    main()
