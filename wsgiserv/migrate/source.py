"""Reads a configuration file's source: what gives names a value at the top level, and where names are used."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_OWN_SCOPE: Final = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# Calls without an effect of their own, as settings are computed by them.
_HARMLESS_CALLS: Final = frozenset(
    ("getenv", "get", "int", "str", "bool", "float", "format", "lower", "upper", "strip", "split", "join", "replace")
)


class Binding(NamedTuple):
    """A place that gives a name of the file a value.

    Attributes:
        name: the name.
        statement: the statement.
        node: the name itself in the statement.
        value: the expression, where the statement gives it to this name alone.
    """

    name: str
    statement: ast.stmt
    node: ast.AST
    value: ast.expr | None

    @property
    def is_definition(self) -> bool:
        """Whether it is a function's or class's own name, or a module's."""
        return isinstance(self.statement, (*_FUNCTIONS, ast.ClassDef, ast.Import))


def bindings_of(body: Sequence[ast.stmt]) -> Iterator[Binding]:
    """Yield the bindings of statements and of the blocks within them, in order; not those within functions."""
    for statement in body:
        if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
            yield Binding(statement.name, statement, statement, None)
            continue
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                yield Binding((alias.asname or alias.name).partition(".")[0], statement, alias, None)
            continue
        yield from _stored(statement)
        for inner in _blocks(statement):
            yield from bindings_of(inner)


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for field in ("body", "orelse", "finalbody"):
        yield getattr(statement, field, [])
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield part.body


def _stored(statement: ast.stmt) -> Iterator[Binding]:
    """Yield the bindings of the statement itself: of an ``if``, those in its condition alone."""
    value = None
    if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
        value = statement.value
    elif isinstance(statement, ast.AnnAssign):
        value = statement.value
        if value is None:
            return
    nodes: list[ast.AST] = [node for node in ast.iter_child_nodes(statement) if not isinstance(node, ast.stmt)]
    while nodes:
        node = nodes.pop(0)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield Binding(node.id, statement, node, value)
        elif not isinstance(node, (*_OWN_SCOPE, ast.ExceptHandler, ast.match_case)):
            nodes = [*ast.iter_child_nodes(node), *nodes]


class Source:
    """A configuration file's source and its syntax tree.

    Args:
        text: the source, with ``\\n`` at the ends of lines.

    Attributes:
        lines: the source's lines, without their ends.
        tree: the syntax tree.
        bindings: what gives names a value at the top level, in order.
        is_dynamic: whether names may get values that the source does not show: ``globals()[name] = value``.

    Raises:
        SyntaxError, ValueError: it is not Python.
    """

    def __init__(self, text: str) -> None:
        self.lines = text.removesuffix("\n").split("\n")
        self.tree = ast.parse(text)
        self.bindings = list(bindings_of(self.tree.body))
        self._starts = _logical_starts(text)
        self._names = [node for node in ast.walk(self.tree) if isinstance(node, ast.Name)]
        self._others = Counter(_other_uses(self.tree))
        self._loads = Counter(node.id for node in self._names if not isinstance(node.ctx, ast.Store))
        self.is_dynamic = any(name in self._loads for name in ("globals", "locals", "vars", "exec", "eval"))

    def start_of(self, line: int) -> int:
        """Return the line where the logical line begins that a line belongs to."""
        return self._starts.get(line, line)

    def is_read(self, name: str) -> bool:
        """Tell whether the file reads a name, or may: as a variable, an attribute, or by a text."""
        return bool(self._loads[name] or self._others[name])

    def is_assigned_class(self, value: ast.expr | None) -> bool:
        """Tell whether a value is the name of a class of the file, or of something imported."""
        return isinstance(value, ast.Name) and any(
            binding.name == value.id and isinstance(binding.statement, (ast.ClassDef, ast.ImportFrom))
            for binding in self.bindings
        )

    def renamable(self, name: str, new: str) -> list[ast.AST] | None:
        """Return all nodes with a variable's name, to be replaced; None when that could change another one."""
        own = [binding.node for binding in self.bindings if binding.name == name]
        is_new_used = any(node.id == new for node in self._names) or self._others[new]
        if is_new_used or self.is_dynamic or any(b.is_definition for b in self.bindings if b.name == name):
            return None
        aliases = [node for node in own if isinstance(node, ast.alias)]
        if self._others[name] > len(aliases):  # parameters, attributes and texts with this name
            return None
        nodes = [node for node in self._names if node.id == name]
        if any(isinstance(node.ctx, (ast.Store, ast.Del)) and node not in own for node in nodes):
            return None  # a variable of a function
        # Python 3.11 does not know the columns within f-strings.
        formatted = [node for node in ast.walk(self.tree) if isinstance(node, ast.JoinedStr)]
        inside = {id(each) for node in formatted for each in ast.walk(node)}
        return None if any(id(node) in inside for node in nodes) else [*nodes, *aliases]

    def is_removable(self, statement: ast.stmt) -> bool:
        """Tell whether a statement can be commented out: it stands alone on its lines, and only gives a value."""
        if statement not in self.tree.body or self.is_dynamic:
            return False
        first, last = first_line(statement), statement.end_lineno or 0
        for other in self.tree.body:
            if other is not statement and first_line(other) <= last and (other.end_lineno or 0) >= first:
                return False
        if isinstance(statement, _FUNCTIONS):
            return not statement.decorator_list
        if isinstance(statement, ast.Assign):
            is_plain = len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name)
        else:
            is_plain = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        return is_plain and all(_is_harmless(node) for node in ast.walk(statement))


def first_line(statement: ast.stmt) -> int:
    """Return the first line of a statement, of its decorators, if it has any."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(each.lineno for each in decorators)])


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        return name in _HARMLESS_CALLS
    return not isinstance(node, (ast.NamedExpr, ast.Await))


def _other_uses(tree: ast.AST) -> Iterator[str]:
    """Yield names that are no variables' nodes: attributes, parameters, texts, patterns, imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            yield from node.names
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, (ast.MatchAs, ast.MatchStar, ast.ExceptHandler)) and node.name:
            yield node.name


def _logical_starts(text: str) -> dict[int, int]:
    """Return, for each line within a logical line of several lines, the first one of these."""
    starts: dict[int, int] = {}
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            continue
        first = first or token.start[0]
        if token.type == tokenize.NEWLINE:
            starts.update((line, first) for line in range(first, token.end[0] + 1))
            first = 0
    return starts
