"""Finds the codes of log lines (``WS1203``) in the source and keeps their registry, tests/unit/log_codes.txt.

``python -m tests.support.log_codes`` writes the registry. A code that has left the source stays there as ``retired``.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "wsgiserv"
REGISTRY = ROOT / "tests" / "unit" / "log_codes.txt"

RETIRED = "retired"
# Each hundred: what it is about, and the parts of the package that may write such a line.
AREAS: dict[int, tuple[str, frozenset[str]]] = {
    10: (
        "config and command line",
        frozenset({"config", "config_check", "cli", "migrate", "places", "master", "worker", "logs", "gunicorn"}),
    ),
    11: ("application loading", frozenset({"app", "hooks", "master", "worker"})),
    12: ("supervision, exits, crash reports", frozenset({"master", "worker", "cli"})),
    13: ("reload, upgrade, zygote", frozenset({"master", "worker"})),
    14: ("listeners, TLS, files, privileges", frozenset({"net", "master", "worker", "privileges", "cli"})),
    15: ("clients and protocol", frozenset({"net", "http", "wsgi", "worker"})),
    16: ("the application's faults in requests", frozenset({"net", "wsgi", "worker"})),
    17: ("worker internals, leaving, background", frozenset({"worker", "net", "gunicorn"})),
    18: ("logs", frozenset({"logs", "worker", "master", "cli"})),
    19: ("control socket, systemd, wsgiservctl, programs", frozenset({"ctl", "master", "embedding", "integrations"})),
}
# Lines that are made elsewhere, with their code: the module of the call, and the argument which is the line.
CARRIED = frozenset(
    {
        ("gunicorn/glogging.py", "msg"),
        ("logs/error.py", "text"),
        ("master/master.py", "advice"),
        ("master/reload.py", "notice"),
        ("master/resources.py", "notice"),
        ("master/resources.py", "warning"),
        ("worker/event_loop_worker.py", "text"),
    }
)
_LEVELS = frozenset({"warning", "error", "critical", "exception", "fatal"})
_LOWER = frozenset({"DEBUG", "INFO"})
_LOGGER = re.compile(r"(?:^|[._])log(?:ger)?$|getLogger\(.*\)$", re.IGNORECASE)
# The command line's errors have the program's name before the code.
_CODE = re.compile(r"(?:[a-z]+: )?(WS1\d{3})(?!\d)")
_CODED = re.compile(r"WS1\d{3} \S")


class Line(NamedTuple):
    """A string of the source that begins with a code."""

    code: str
    part: str
    place: str
    text: str


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yield the path within the package and the syntax tree of each module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(), str(path))


def _text(node: ast.AST) -> str | None:
    """Return the text of a literal: of an f-string with ``{}`` for each value, None for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "{}" for part in node.values)
    return None


def _is_coded(message: ast.expr, assigned: Mapping[str, list[ast.expr]]) -> bool:
    if isinstance(message, ast.IfExp):
        return _is_coded(message.body, assigned) and _is_coded(message.orelse, assigned)
    if isinstance(message, ast.Name):
        values = assigned.get(message.id, [])
        return bool(values) and all(_CODED.match(_text(value) or "") for value in values)
    return _CODED.match(_text(message) or "") is not None


def _assigned(tree: ast.AST) -> dict[int, dict[str, list[ast.expr]]]:
    """Return, for each call, what the function around it assigns to its variables."""
    found: dict[int, dict[str, list[ast.expr]]] = {}
    for function in ast.walk(tree):  # outer functions come before inner ones
        if isinstance(function, ast.FunctionDef):
            names: dict[str, list[ast.expr]] = {}
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    names.setdefault(node.targets[0].id, []).append(node.value)
            found.update({id(node): names for node in ast.walk(function) if isinstance(node, ast.Call)})
    return found


def _is_lower(level: ast.expr, assigned: Mapping[str, list[ast.expr]]) -> bool:
    if isinstance(level, ast.IfExp):
        return _is_lower(level.body, assigned) and _is_lower(level.orelse, assigned)
    if isinstance(level, ast.Name) and level.id in assigned:
        return all(_is_lower(value, {}) for value in assigned[level.id])
    return isinstance(level, ast.Attribute) and level.attr in _LOWER


def _is_carried(name: str, arguments: list[ast.expr]) -> bool:
    given = arguments[1:] if arguments and _text(arguments[0]) == "%s" else arguments[:1]
    return bool(given) and (name, ast.unparse(given[0])) in CARRIED


def lines() -> list[Line]:
    """Return all strings of the package that begin with a code, also those that the command line prints."""
    found = []
    for name, tree in sources():
        part = name.partition("/")[0].removesuffix(".py").lstrip("_")
        inner = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
        strings = [node for node in ast.walk(tree) if isinstance(node, ast.expr) and id(node) not in inner]
        for node in sorted(strings, key=lambda node: (node.lineno, node.col_offset)):
            text = _text(node)
            if text and (code := _CODE.match(text)):
                found.append(Line(code[1], part, f"{name}:{node.lineno}", text[code.end() :].strip()))
    return found


def uncoded() -> list[str]:
    """Return the places of calls, of level warning and above, whose message is no literal that begins with a code.

    A method of a log which is not called at once (``partial(log.error)``) is one, too.
    """
    found = []
    for name, tree in sources():
        assigned = _assigned(tree)
        called: dict[int, ast.Call] = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not _LOGGER.search(ast.unparse(node.value)):
                continue
            call = called.get(id(node))
            if node.attr == "log" and call is not None:
                level, *arguments = call.args
                if _is_lower(level, assigned.get(id(call), {})):
                    continue
            elif node.attr in _LEVELS:
                arguments = call.args if call is not None else []
            else:
                continue
            names = assigned.get(id(call), {})
            if not arguments or not (_is_coded(arguments[0], names) or _is_carried(name, arguments)):
                found.append(f"{name}:{node.lineno}: {ast.unparse(call or node)[:100]}")
    return found


def faults() -> list[str]:
    """Return what is wrong with the codes: used twice, or outside of the range of its area."""
    known = lines()
    times = Counter(line.code for line in known)
    found = [f"{line.place}: {line.code} is used {times[line.code]} times" for line in known if times[line.code] > 1]
    for line in known:
        about, parts = AREAS[int(line.code[2:4])]
        if line.part not in parts:
            found.append(f"{line.place}: {line.code} is of the range for {about}, not for {line.part}")
    return found


def registry() -> dict[str, str]:
    """Return the registered text of each code; empty where there is no registry yet."""
    if not REGISTRY.exists():
        return {}
    rows = [row.partition(" ") for row in REGISTRY.read_text().splitlines() if row and not row.startswith("#")]
    return {code: text.strip() for code, _, text in rows}


def updated(old: Mapping[str, str]) -> dict[str, str]:
    """Return the registry as the source has it now.

    Raises:
        ValueError: a retired code is in use again.
    """
    new = {line.code: " ".join(line.text.split()) for line in lines()}
    for code, text in old.items():
        if code in new and text.startswith(RETIRED):
            raise ValueError(f"{code} is retired ({text}): take a code that has never been used")
        if code not in new:
            new[code] = text if text.startswith(RETIRED) else f"{RETIRED}: {text}"
    return dict(sorted(new.items()))


def main() -> int:
    """Write the registry; tell what the test is going to refuse."""
    new = updated(registry())
    head = "# Codes of log lines: written by python -m tests.support.log_codes. A retired code is never used again.\n"
    REGISTRY.write_text(head + "".join(f"{code} {text}\n" for code, text in new.items()))
    problems = [*faults(), *(f"no code: {place}" for place in uncoded())]
    print(*problems, f"{len(new)} codes in {REGISTRY.relative_to(ROOT)}", sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
