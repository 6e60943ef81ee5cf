"""Declares settings: kinds of values, sections, and the metadata beside each field of `Settings`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from wsgiserv.user_code import own_attribute

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Arity = Literal["one", "none", "many", "optional"]


@dataclass(frozen=True)
class Kind(Generic[T_co]):
    """A kind of value; several settings may share it.

    Attributes:
        parse: turns a raw value (text from a flag, anything from a file) into the field's value; raises
            ValueError or TypeError, with or without a reason, for any other value.
        accepts: describes the accepted values: follows "Accepted: " in an error.
        metavar: the value's name in --help.
        arity: the number of values of a flag: ``one``, ``none`` (a switch: the flag means True, its ``--no-`` form
            False), ``many`` (the flag may be repeated) or ``optional`` (a flag without a value means True).
        choices: the accepted words, when there are only a few; the nearest one is proposed for a mistyped word.
    """

    # Generic in its result: mypy compares each default, and so each field, with its parser.
    parse: Callable[[Any], T_co]
    accepts: str
    metavar: str = ""
    arity: Arity = "one"
    choices: tuple[str, ...] = ()


class Setting(NamedTuple):
    """One setting, as declared beside its field.

    Attributes:
        section: its topic.
        kind: its values.
        help: one sentence for --help.
        default: the value when nothing gives one.
        doc: more, for docs/settings.md; Markdown; may be empty.
        flags: the flags shown in --help; empty: a configuration file only (or the environment).
        hidden_flags: further accepted flags, for command lines written for other servers.
        metavar: the value's name in --help, where the kind's is not used.
        accepts: describes the accepted values, where the kind's text is not used.
        aliases: other names in a configuration file.
        old_names: names in old gunicorns, ignored by the present one; accepted, with a notice.
        clamped: whether a value above the largest is taken as the largest, with a notice, since gunicorn accepts it.
        environment: the environment variable for the value, for the documentation.
        in_file: whether a configuration file may set it.
        show_default: the default in words, where the value itself says too little.
        when_unset: what it means, beyond its default, that nothing sets it; for --print-config.
        name: the field's name, also in a configuration file.
    """

    section: Section
    kind: Kind[Any]
    help: str
    default: Any
    doc: str = ""
    flags: tuple[str, ...] = ()
    hidden_flags: tuple[str, ...] = ()
    metavar: str = ""
    accepts: str = ""
    aliases: tuple[str, ...] = ()
    old_names: tuple[str, ...] = ()
    clamped: bool = False
    environment: str = ""
    in_file: bool = True
    show_default: str = ""
    when_unset: str = ""
    name: str = ""

    @property
    def parse(self) -> Callable[[Any], Any]:
        """The parser of its kind."""
        return self.kind.parse

    @property
    def off_flags(self) -> tuple[str, ...]:
        """The ``--no-`` forms of a switch; empty for anything else."""
        if self.kind.arity != "none":
            return ()
        long_flags = (*self.flags, *self.hidden_flags)
        return tuple(f"--no-{flag[2:]}" for flag in long_flags if flag.startswith("--"))


class Section(StrEnum):
    """The topics of --help and of docs/settings.md. A call declares a setting: the right-hand side of its field."""

    # In the order of a first reading: the application and its address first, the hooks last.
    APPLICATION = "Application"
    LISTENING = "Listening"
    WORKERS = "Workers"
    TIMEOUTS = "Timeouts"
    LIMITS = "Limits"
    PROXIES = "Proxies and headers"
    PROCESS = "Process"
    LOGGING = "Logging"
    TLS = "TLS"
    DEVELOPMENT = "Development and checks"
    HOOKS = "Hooks"

    def __call__(self, default: T, kind: Kind[T], help: str, flags: str = "--{}", **more: Any) -> T:
        """Declare a setting.

        Args:
            default, kind, help: as in `Setting`.
            flags: its flags, separated by spaces; ``{}`` stands for the field's name, with dashes. Empty: none.
            more: further attributes of `Setting`.
        """
        words = {"metavar": kind.metavar if flags else "", "accepts": kind.accepts, **more}
        words["doc"] = " ".join(words.get("doc", "").split())  # written over several lines
        metadata = {"setting": Setting(self, kind, help, default, flags=tuple(flags.split()), **words)}
        # One configuration never writes into the dictionary of another, nor into the default.
        if isinstance(default, dict):
            return field(default_factory=default.copy, metadata=metadata)  # type: ignore[return-value]
        return field(default=default, metadata=metadata)


def declared(settings_class: type[Any]) -> dict[str, Setting]:
    """Return the declarations of a settings record by name, in the order of its fields."""
    found = {}
    for each in fields(settings_class):
        setting: Setting | None = each.metadata.get("setting")
        if setting is None:  # a fact about the settings
            continue
        # Only here are the fields' names known: a call in a class body does not see what its result is assigned to.
        flags = tuple(flag.format(each.name.replace("_", "-")) for flag in setting.flags)
        found[each.name] = setting._replace(name=each.name, flags=flags)
    return found


def show(value: object) -> str:
    """Return a setting's value as a person would write it in a configuration file, on one line."""
    if callable(value) and not issubclass(type(value), type):  # by its type: a proxy's __class__ may raise
        name = own_attribute(value, "__qualname__") or type(value).__qualname__
        return f"<function {name} of {own_attribute(value, '__module__') or '?'}>"
    # "30", not "30.0": as a person has written it.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, tuple):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)
