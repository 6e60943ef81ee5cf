"""Finds settings in environment variables: WSGISERV_<NAME> for each, and the variables of platforms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from wsgiserv.config.env_file import FileVariable
from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.setting import Section, Setting
from wsgiserv.config.settings import SETTINGS
from wsgiserv.wording import did_you_mean, nearest

OWN_ARGUMENTS: Final = "WSGISERV_CMD_ARGS"
GUNICORN_ARGUMENTS: Final = "GUNICORN_CMD_ARGS"

_PREFIX: Final = "WSGISERV_"
# The command line, the next master's descriptors; and what the tests of this project and of its users may have.
_OTHERS: Final = re.compile(r"(?:CMD_ARGS|UPGRADE)$|REQUIRE_|TEST")
# Kubernetes sets these in each container beside a service named "wsgiserv".
_SERVICE_LINK: Final = re.compile(r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_[A-Z]+(?:_\w+)?)")
_SERVICE_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://")
# The words of other servers for a setting of ours; too far from its name to be found by likeness.
_WORDS: Final = {"HOST": "bind", "PORT": "bind", "ADDRESS": "bind", "APP": "wsgi_app", "APPLICATION": "wsgi_app"}


class Environment(NamedTuple):
    """The environment that settings are read from.

    Attributes:
        values: the variables.
        files: those of environment files among them, by name.
    """

    values: Mapping[str, str]
    files: Mapping[str, FileVariable] = {}

    def text(self, variable: str) -> str:
        """Return a variable's value; an unset one is empty, as are those that some platforms declare without one."""
        return self.values.get(variable, "").strip()

    def place(self, variable: str) -> str:
        """Return the place of a variable, for messages."""
        found = self.files.get(variable)
        return f"in {found.place}" if found is not None else "in the environment"

    def with_files(self, variables: Iterable[FileVariable]) -> Environment:
        """Return the environment with files' variables: later ones win over earlier ones, our own over all."""
        files = {each.name: each for each in variables if each.name not in self.values}
        return Environment({**self.values, **{name: each.value for name, each in files.items()}}, files)


class OwnVariable(NamedTuple):
    """A setting's value in a variable.

    Attributes:
        variable: the variable's name.
        setting: the setting.
        text: the value; not empty.
    """

    variable: str
    setting: Setting
    text: str


def variables_of(setting: Setting) -> tuple[str, ...]:
    """Return a setting's variables, the documented one first. A hook has none: a variable holds no function."""
    if setting.section is Section.HOOKS:
        return ()
    flags = (flag[2:] for flag in (*setting.flags, *setting.hidden_flags) if flag.startswith("--"))
    names = (setting.name, *setting.aliases, *flags)
    return tuple(dict.fromkeys(_variable(name) for name in names))


def _variable(name: str) -> str:
    return _PREFIX + name.upper().replace("-", "_")


_SETTING_OF: Final = {variable: setting for setting in SETTINGS.values() for variable in variables_of(setting)}
_GUNICORNS: Final = {
    _variable(name.removeprefix("--")): each.name
    for each in GUNICORN_ONLY.values()
    for name in (each.name, *each.flags)
    if not re.fullmatch("-.", name)
}


def own_variables(environment: Environment) -> Iterator[OwnVariable]:
    """Yield the variables with a setting's value; of one setting the documented one last, which so wins."""
    given = {name for name in environment.values if name in _SETTING_OF and environment.text(name)}
    for setting in SETTINGS.values() if given else ():
        for variable in reversed(variables_of(setting)):
            if variable in given:
                yield OwnVariable(variable, setting, environment.text(variable))


def last_own(environment: Environment, name: str) -> OwnVariable | None:
    """Return the variable that counts for one setting, or None."""
    return next((each for each in reversed([*own_variables(environment)]) if each.setting.name == name), None)


def raw_value(setting: Setting, text: str) -> object:
    """Return a variable's text as the setting's parser takes it. Raises ValueError.

    The values of a flag that may be repeated are separated by blanks, with quotes as in a shell; a dictionary is JSON.
    """
    if setting.kind.arity == "many":
        import shlex  # most environments have no such variable

        return shlex.split(text)
    if isinstance(setting.default, dict):
        import json

        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
        return found
    return text


def accepted_in_variable(setting: Setting) -> str:
    """Return the description of the values accepted in a variable."""
    if setting.kind.arity == "many":
        return f"{setting.accepts}; several are separated by blanks, quoted as in a shell"
    return f"{setting.accepts}, in JSON" if isinstance(setting.default, dict) else setting.accepts


def platform_variable(name: str, text: str) -> str:
    """Return a platform's variable as text for the setting ``name``."""
    if name == "sendfile":
        return {"y": "yes", "n": "no"}.get(text.lower(), text)  # as gunicorn reads it
    return f"0.0.0.0:{text}" if name == "bind" else text


def unknown_variables(environment: Environment) -> Iterator[tuple[str, str]]:
    """Yield the variables with our prefix that are no setting's, each with a sentence of advice; may be empty."""
    for variable in sorted(environment.values):
        rest = variable.removeprefix(_PREFIX)
        if rest == variable or variable in _SETTING_OF or variable in _GUNICORNS or _OTHERS.match(rest):
            continue
        if _SERVICE_LINK.fullmatch(rest) or _SERVICE_ADDRESS.match(environment.text(variable)):
            continue
        yield variable, _advice(rest)


def _advice(rest: str) -> str:
    if rest.lower() in SETTINGS:  # only hooks are left
        return f"A function cannot be in a variable: define {rest.lower()} in a configuration file."
    if rest in _WORDS:
        return did_you_mean([_variable(_WORDS[rest])])
    # Without the prefix, which is half of each name and makes all of them look alike.
    known = [variable.removeprefix(_PREFIX) for variable in (*_SETTING_OF, OWN_ARGUMENTS)]
    return did_you_mean(_PREFIX + each for each in nearest(rest, known, limit=1, cutoff=0.7))


def gunicorns_variables(environment: Environment) -> Iterator[tuple[str, str]]:
    """Yield the variables with our prefix for settings that only gunicorn has, each with the setting's name."""
    for variable in sorted(environment.values):
        if variable in _GUNICORNS and environment.text(variable):
            yield variable, _GUNICORNS[variable]
