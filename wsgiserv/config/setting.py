"""How a setting is declared: the metadata that sits beside each field of `Settings`.

Owns: `Setting` (what is known of one setting besides its value and type), `setting()` which declares one,
and reading the declarations back from the record.
Must not know: any particular setting, where values come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field, fields
from typing import Any, Literal, NamedTuple, TypeVar

from wsgiserv.user_code import own_attribute

__all__ = ["SECTIONS", "Setting", "declared", "setting", "show"]

T = TypeVar("T")

# The topics of --help and of docs/settings.md, in their order.
SECTIONS = (
    "Application",
    "Listening",
    "Workers",
    "Timeouts",
    "Limits",
    "Proxies and headers",
    "Process",
    "Logging",
    "TLS",
    "Development and checks",
    "Hooks",
)

Takes = Literal["value", "nothing", "values", "optional"]


class Setting(NamedTuple):
    """One setting, as declared beside its field.

    Attributes:
        section: one of `SECTIONS`.
        parse: turns a raw value (text from a flag, anything from a file) into the field's value; raises
            ValueError or TypeError, whose message may be empty, for a value that is not accepted.
        accepts: what values are accepted, in words: follows "expected " in an error.
        help: one sentence for --help.
        doc: more, for docs/settings.md; Markdown; may be empty.
        flags: the flags shown in --help; empty: a configuration file only (or the environment).
        hidden_flags: further flags that are accepted, for command lines written for others.
        takes: ``value``, ``nothing`` (a switch: the flag means True, its ``--no-`` form False),
            ``values`` (the flag may be given several times) or ``optional`` (a flag without a value means True).
        metavar: the value's name in --help.
        choices: the accepted words, when there are only a few.
        aliases: other names that a configuration file may use.
        old_names: names that old gunicorns had, and the present one ignores; taken, with a notice.
        clamped: whether a value above the largest is taken as the largest, with a notice, since gunicorn accepts it.
        environment: the environment variable that may give the value, for the documentation.
        in_file: whether a configuration file may set it.
        show_default: the default in words, where the value itself says too little.
        default: the value when nothing gives one.
        name: the field's name, which is the name in a configuration file.
    """

    section: str
    parse: Callable[[Any], Any]
    accepts: str
    help: str
    doc: str = ""
    flags: tuple[str, ...] = ()
    hidden_flags: tuple[str, ...] = ()
    takes: Takes = "value"
    metavar: str = ""
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    old_names: tuple[str, ...] = ()
    clamped: bool = False
    environment: str = ""
    in_file: bool = True
    show_default: str = ""
    default: Any = None
    name: str = ""

    @property
    def off_flags(self) -> tuple[str, ...]:
        """The ``--no-`` forms of a switch; empty for anything else."""
        if self.takes != "nothing":
            return ()
        long_flags = (*self.flags, *self.hidden_flags)
        return tuple(f"--no-{flag[2:]}" for flag in long_flags if flag.startswith("--"))


def setting(
    default: T,
    *,
    section: str,
    parse: Callable[[Any], T],
    accepts: str,
    help: str,
    doc: str = "",
    flags: tuple[str, ...] = (),
    hidden_flags: tuple[str, ...] = (),
    takes: Takes = "value",
    metavar: str = "",
    choices: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    old_names: tuple[str, ...] = (),
    clamped: bool = False,
    environment: str = "",
    in_file: bool = True,
    show_default: str = "",
) -> T:
    """Declare a setting: the right-hand side of a field of `Settings`; arguments as in `Setting`.

    Dictionaries are copied for each `Settings`, so that one configuration never writes into another's.
    """
    declaration = Setting(
        section=section,
        parse=parse,
        accepts=accepts,
        help=help,
        doc=doc,
        flags=flags,
        hidden_flags=hidden_flags,
        takes=takes,
        metavar=metavar,
        choices=choices,
        aliases=aliases,
        old_names=old_names,
        clamped=clamped,
        environment=environment,
        in_file=in_file,
        show_default=show_default,
        default=default,
    )
    metadata = {"setting": declaration}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)  # type: ignore[return-value]
    return field(default=default, metadata=metadata)


def declared(settings_class: type[Any]) -> dict[str, Setting]:
    """Return the declarations of a settings record by name, in the order of its fields."""
    return {each.name: each.metadata["setting"]._replace(name=each.name) for each in fields(settings_class)}


def show(value: object) -> str:
    """Return a setting's value as a person would write it in a configuration file, on one line."""
    if callable(value) and not issubclass(type(value), type):  # by its type: a proxy's __class__ may raise
        name = own_attribute(value, "__qualname__") or type(value).__qualname__
        return f"<function {name} of {own_attribute(value, '__module__') or '?'}>"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, tuple):
        return show_list(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def show_list(values: Sequence[object]) -> str:
    """Return the values as a list in Python's notation."""
    return "[" + ", ".join(map(show, values)) + "]"
