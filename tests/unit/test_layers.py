"""Imports point down the layers that docs/architecture.md draws; the test reads the layers from that page.

The drawing is one line, ``gunicorn, ... → errors``: the parts of the package, highest layer first, an arrow between
layers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cases import check_each

import wsgiserv

PACKAGE = Path(wsgiserv.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"


class Import(NamedTuple):
    """One import statement: where it is, what it names, whether it is for type checkers only."""

    module: str
    target: str
    line: int
    typing_only: bool


def layers() -> dict[str, int]:
    """Return the layer of each part, from the page: 0 is the lowest."""
    drawing = re.search(r"^\s*gunicorn, .*→ errors$", PAGE.read_text(), re.MULTILINE)
    assert drawing, "docs/architecture.md has no line 'gunicorn, ... → ... → errors' that draws the layers"
    highest_first = drawing[0].split("→")
    return {name: number for number, layer in enumerate(reversed(highest_first)) for name in re.findall(r"\w+", layer)}


def part(module: str) -> str:
    """``wsgiserv.net.listener`` belongs to ``net``."""
    return module.split(".")[1] if "." in module else ""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def imports(path: Path) -> list[Import]:
    """Return the imports of a file, those in functions too."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[Import]:
    module = name_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = parsed(path)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            # "from wsgiserv import scoreboard" names a part, "from wsgiserv.errors import X" has it already.
            targets = [f"{base}.{alias.name}" for alias in node.names] if base == "wsgiserv" else [base]
        for target in targets:
            yield Import(module, target, node.lineno, id(node) in typing_only)


FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def all_imports() -> list[Import]:
    return [found for path in FILES for found in imports(path)]


def our_imports() -> list[Import]:
    return [found for found in all_imports() if found.target.split(".")[0] == "wsgiserv"]


def test_imports_point_down() -> None:
    known = layers()

    def check(path: Path) -> None:
        own = part(name_of(path))
        if own in ("", "__main__"):  # the version, which anyone may import; the entry, which imports the cli
            ours = [found for found in imports(path) if found.target.startswith("wsgiserv") and not found.typing_only]
            assert own == "__main__" or not ours
            return
        assert own in known, f"docs/architecture.md gives {own!r} no layer"
        for found in imports(path):
            target = part(found.target)
            if not found.target.startswith("wsgiserv.") or target == own or target not in known:
                continue
            assert known[target] <= known[own], f"{path}:{found.line} imports {found.target}, which is a higher layer"

    check_each(((name_of(path), path) for path in FILES), check)


def test_master_and_workers_do_not_import_each_other() -> None:
    for found in our_imports():
        pair = {part(found.module), part(found.target)}
        assert pair != {"master", "worker"}, f"{found.module}, line {found.line}, imports {found.target}"


def test_http_and_config_know_nothing_of_each_other() -> None:
    """Floors that hold several parts are no licence: bytes and settings meet above both."""
    for found in our_imports():
        pair = {part(found.module), part(found.target)}
        assert pair != {"http", "config"}, f"{found.module}, line {found.line}, imports {found.target}"


def test_gevent_is_imported_by_its_worker_alone() -> None:
    allowed = {f"wsgiserv.worker.{name}" for name in ("gevent_worker", "gevent_patching", "greenlet_pool")}
    for found in all_imports():
        if found.target.split(".")[0] in ("gevent", "greenlet"):
            assert found.module in allowed, f"{found.module}, line {found.line}"


def test_http_and_wsgi_open_no_sockets() -> None:
    for found in all_imports():
        if part(found.module) in ("http", "wsgi"):
            assert found.target not in ("socket", "select", "selectors", "asyncio"), found


def test_a_module_has_a_docstring() -> None:
    def check(path: Path) -> None:
        text = ast.get_docstring(parsed(path)) or ""
        assert text or not path.read_text().strip(), f"{path} has no docstring"

    check_each(((name_of(path), path) for path in FILES), check)
