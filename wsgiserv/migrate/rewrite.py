"""Rewrites a configuration file of gunicorn for wsgiserv: keeps its code, renames settings, and adds comments.

The file is not run: what it needs (variables of the environment, modules) may not be where the command is typed.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from wsgiserv import __version__
from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.gunicorn_differences import OTHER_DEFAULTS, UNKNOWN, effects_of
from wsgiserv.config.names import BY_ALIAS, BY_OLD_NAME, meant_by
from wsgiserv.config.refusal import refusal, shown_value
from wsgiserv.config.setting import Section
from wsgiserv.config.settings import SETTINGS
from wsgiserv.config.values import TooLarge
from wsgiserv.config.worker_class import CLASS_PATHS
from wsgiserv.migrate.source import Binding, Source, first_line
from wsgiserv.wording import did_you_mean

_MARK: Final = "# wsgiserv: "
_WIDTH: Final = 110
# Users and groups are the host's that serves, hooks and classes are the file's own code.
_NOT_CHECKED: Final = ("user", "group", "chdir", "pythonpath")
# gunicorn's words for values of ours.
_MAPPED: Final = ("worker_class", "reload_engine")
_STARTS_FILE: Final = re.compile(r"#!|[ \t\f]*#.*?coding[:=]")


class Migrated(NamedTuple):
    """A rewritten file.

    Attributes:
        text: its source.
        refused: a line for each value that wsgiserv does not accept.
    """

    text: str
    refused: list[str]


def migrate(text: str, name: str) -> Migrated:
    """Return the configuration for wsgiserv.

    Args:
        text: the source of gunicorn's configuration file, with ``\\n`` at the ends of lines.
        name: the file's name, for comments.

    Raises:
        SyntaxError, ValueError: the source is not Python.
    """
    rewriter = _Rewriter(Source(text))
    rewriter.rewrite()
    return Migrated(rewriter.assembled(name), rewriter.refused)


class _Rewriter:
    """Collects the changes of a file; `assembled` applies them.

    Attributes:
        refused: as of `Migrated`.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._seen: set[str] = set()
        self._told: set[str] = set()
        self._comments: dict[int, list[str]] = {}
        self._removed: set[int] = set()
        self._replaced: list[tuple[ast.AST, str]] = []
        self.refused: list[str] = []

    def rewrite(self) -> None:
        """Look at each binding, and at what else a file for gunicorn has."""
        for binding in self._source.bindings:
            name = binding.name
            if name in BY_OLD_NAME or name in BY_ALIAS:
                self._rename(binding)
            elif name in SETTINGS:
                self._look_at_setting(binding, name)
            elif name in GUNICORN_ONLY:
                self._drop(binding)
            elif near := meant_by(name, _literal(binding.value)):
                self._comment(binding, f"not a setting, and ignored as gunicorn ignores it. {did_you_mean(near)}")
            self._seen.add(name)
        self._look_at_imports()

    # ---- names -----------------------------------------------------------------------------------------

    def _rename(self, binding: Binding) -> None:
        """Rename a setting: all its uses when the first binding comes by."""
        name = binding.name
        new = BY_ALIAS.get(name) or BY_OLD_NAME[name]
        if binding.is_definition and name in BY_OLD_NAME:
            return  # the file's own
        if name in BY_OLD_NAME and any(each.name == new for each in self._source.bindings):
            self._comment(binding, f"{name} is not used: it is gunicorn's old name of {new}, which is set, too.")
            self._remove(binding)
            return
        if name not in self._seen:
            nodes = self._source.renamable(name, new)
            if nodes is not None:
                self._replaced += [(node, new) for node in nodes]
                self._comment(binding, f"was {name}, gunicorn's name of {new}.")
            elif name in BY_ALIAS:
                self._comment(binding, f"{name} is taken as {new}, wsgiserv's name.")
            else:
                self._comment(binding, f"{name} is gunicorn's old name of {new}, and is taken as that. Rename it.")
        self._look_at_setting(binding, new)

    # ---- settings --------------------------------------------------------------------------------------

    def _look_at_setting(self, binding: Binding, name: str) -> None:
        """Comment on what is different for a setting of ours, and map its value."""
        raw = _literal(binding.value)
        if isinstance(binding.statement, ast.Import) or raw is None or not SETTINGS[name].in_file:
            return
        value: Any = UNKNOWN
        if raw is not UNKNOWN and name not in _NOT_CHECKED and SETTINGS[name].section != Section.HOOKS:
            value = self._parsed(binding, name, raw)
        elif name == "worker_class" and self._source.is_assigned_class(binding.value):
            value = object  # a class, as far as the comments are concerned
        if name in _MAPPED:
            self._map(binding, name, raw, value)
        for text in effects_of(name, value):
            if text not in self._told:
                self._comment(binding, f"{text}.")
            self._told.add(text)

    def _parsed(self, binding: Binding, name: str, raw: object) -> object:
        """Return the parsed value, `UNKNOWN` for one that is refused: then there is a comment."""
        setting = SETTINGS[name]
        try:
            return setting.parse(raw)
        except TooLarge as error:
            if setting.clamped:
                self._comment(binding, f"{error}, which is used instead.")
                return setting.parse(error.largest)
            reason = refusal(setting, raw, error)
        except (ValueError, TypeError, ArithmeticError) as error:
            reason = refusal(setting, raw, error)
        line = f"{name} = {shown_value(raw)} {reason} Accepted: {setting.kind.accepts}."
        self.refused.append(f"line {binding.statement.lineno}: {line}")
        self._comment(binding, f"CHANGE THIS, or the server does not start: {line}")
        return UNKNOWN

    def _map(self, binding: Binding, name: str, raw: object, value: object) -> None:
        """Replace gunicorn's word by ours, unless the file compares it with gunicorn's."""
        node = binding.value
        if not isinstance(node, ast.Constant) or value == raw or value not in (*CLASS_PATHS, "auto"):
            return
        if self._source.is_read(name) or node.lineno != node.end_lineno:
            self._comment(binding, f"{value!r} here.")
            return
        self._replaced.append((node, f'"{value}"'))
        self._comment(binding, f"was {raw!r}.")

    def _drop(self, binding: Binding) -> None:
        """Comment out a setting of gunicorn's without a use here, where that changes nothing else."""
        name, statement = binding.name, binding.statement
        ignored = GUNICORN_ONLY[name]
        if binding.is_definition and not (ignored.function and not isinstance(statement, (ast.Import, ast.ClassDef))):
            return  # the file's own
        self._comment(binding, f"{name} is not used: {ignored.instead}.", once=True)
        self._remove(binding)

    def _remove(self, binding: Binding) -> None:
        """Comment out a statement, where that changes nothing but the one setting."""
        statement = binding.statement
        if self._source.is_removable(statement) and not self._source.is_read(binding.name):
            self._removed.update(range(first_line(statement), (statement.end_lineno or 0) + 1))

    # ---- imports ---------------------------------------------------------------------------------------

    def _look_at_imports(self) -> None:
        told = False
        for node in ast.walk(self._source.tree):
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                module = "." * node.level + (node.module or "")
                self._comment_at(node, f"settings of {module} count, too: look at them with `wsgiserv migrate`.")
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if not told and any(module.partition(".")[0] == "gunicorn" for module in modules):
                told = True
                self._comment_at(
                    node, "found without gunicorn, too: wsgiserv has stand-ins, see docs/embedding-gunicorn.md."
                )
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_server_name(node):
                self._comment_at(node, "this is the Server header of responses; server_header sets it as well.")

    # ---- comments --------------------------------------------------------------------------------------

    def _comment(self, binding: Binding, text: str, once: bool = False) -> None:
        if not (once and binding.name in self._seen):
            self._comment_at(binding.statement, text)

    def _comment_at(self, node: ast.AST, text: str) -> None:
        line = self._source.start_of(first_line(node) if isinstance(node, ast.stmt) else node.lineno)  # type: ignore[attr-defined]
        texts = self._comments.setdefault(line, [])
        if text not in texts:
            texts.append(text)

    # ---- the new file ----------------------------------------------------------------------------------

    def assembled(self, name: str) -> str:
        """Return the new source; ``name`` is the old file's name."""
        lines = _replaced(self._source.lines, self._replaced)
        top = max((number for number, line in enumerate(lines[:2], 1) if _STARTS_FILE.match(line)), default=0)
        made = [*lines[:top], *_header(name)]
        for number, line in enumerate(lines[top:], top + 1):
            indent = line[: len(line) - len(line.lstrip())]
            for text in self._comments.get(number, ()):
                made += _wrapped(text, indent)
            made.append(f"# {line}".rstrip() if number in self._removed else line)
        return "\n".join([*made, *self._footer(), ""])

    def _footer(self) -> Iterator[str]:
        """Yield what the file leaves to defaults that are not gunicorn's."""
        bound = {BY_ALIAS.get(each.name, each.name) for each in self._source.bindings}
        if "forwarded_allow_ips" not in bound:
            yield ""
            yield from _wrapped(
                "forwarded_allow_ips is not set here: X-Forwarded-*, Forwarded and X-Real-IP of any client reach the "
                "application, as with gunicorn. Behind a proxy name it, by its address or network; then these headers "
                "of all others are removed."
            )
            yield '# forwarded_allow_ips = "10.0.0.7"'
        others = [each for each in OTHER_DEFAULTS if each.name not in bound and ("user" in bound or not each.with_user)]
        if others:
            yield ""
            yield from _wrapped(
                "these are not set here, and have another default than in gunicorn. Each line restores gunicorn's."
            )
        for each in others:
            yield f"{f'# {each.name} = {each.value}':27}  # {each.ours} here: {each.why}"


def _literal(value: ast.expr | None) -> Any:
    """Return the value of a literal, else `UNKNOWN`."""
    if value is None:
        return UNKNOWN
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN


def _is_server_name(node: ast.Attribute) -> bool:
    is_module = isinstance(node.value, ast.Name) and node.value.id == "gunicorn"
    return is_module and node.attr in ("SERVER", "SERVER_SOFTWARE")


def _replaced(lines: Sequence[str], replaced: Sequence[tuple[ast.AST, str]]) -> list[str]:
    """Return the lines with the text of nodes replaced; none of these spans lines."""
    made = list(lines)
    # From the end on: a change moves what is behind it.
    for node, text in sorted(replaced, key=lambda each: _position(each[0]), reverse=True):
        line, start = _position(node)
        raw = made[line - 1].encode()  # columns count bytes
        if isinstance(node, ast.alias):
            text = f"{node.name} as {text}"
        made[line - 1] = (raw[:start] + text.encode() + raw[node.end_col_offset :]).decode()  # type: ignore[attr-defined]
    return made


def _position(node: Any) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _header(name: str) -> Iterator[str]:
    yield f"# {name} for wsgiserv: made by `wsgiserv migrate` {__version__}."
    yield f'# "{_MARK.strip()}" begins what is different. Keep this file in the directory of the old one, and check it:'
    yield "#     wsgiserv -c wsgiserv.conf.py --check-config APPLICATION"
    yield ""


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent + _MARK,
        subsequent_indent=f"{indent}#   ",
        break_on_hyphens=False,
        break_long_words=False,
    )
