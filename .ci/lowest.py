"""Prints pip constraints: the lowest version that pyproject.toml accepts of each package that servers run on.

That is: the dependencies, what ``reload`` and ``paste`` add, and the frameworks. Test programs stay at their newest.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_EXTRAS = ("reload", "paste", "frameworks")
_BOUND = re.compile(r"^([\w.-]+)\s*>=\s*([\w.]+)\s*(;.*)?$")


# What an old release needs and does not say: gevent 22.10 finds its plugins by pkg_resources.
_COMPANIONS = ("setuptools==75.8.2; python_version < '3.12'",)


def main() -> None:
    """Write one constraint a line; one for some versions of Python keeps its marker."""
    project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *(each for name in _EXTRAS for each in extras[name])]:
        bound = _BOUND.match(requirement)
        assert bound, f"{requirement} has no lower bound"
        print(f"{bound[1]}=={bound[2]}{bound[3] or ''}")
    print(*_COMPANIONS, sep="\n")


if __name__ == "__main__":
    main()
