"""Reads what gives settings besides a configuration file: arguments, the environment and environment files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple

from wsgiserv.config.argv import Given, parse
from wsgiserv.config.env_file import FileVariable, read_env_file
from wsgiserv.config.environment import GUNICORN_ARGUMENTS, OWN_ARGUMENTS, Environment, last_own, raw_value
from wsgiserv.config.masking import mask_text
from wsgiserv.errors import ConfigError

# Later ones win.
_ARGUMENTS: Final = (GUNICORN_ARGUMENTS, OWN_ARGUMENTS)


class Sources(NamedTuple):
    """What was read, before any value is looked at.

    Attributes:
        environment: the environment, with the variables of environment files.
        arguments: all arguments, lowest first.
        variables: the variables of environment files, those included that are not used.
        faults: the mistakes in arguments and environment files.
        is_whole: False when an environment file has a fault: any variable may be missing.
    """

    environment: Environment
    arguments: Sequence[Given]
    variables: Sequence[FileVariable]
    faults: Sequence[ConfigError]
    is_whole: bool


def last_given(arguments: Sequence[Given], name: str) -> object:
    """Return the raw value of a setting in the last argument that gives it, or None."""
    return next((given.raw for given in reversed(arguments) if given.name == name and given.raw), None)


def read_sources(argv: Sequence[str], environ: Mapping[str, str], directory: str) -> Sources:
    """Read arguments, environment and environment files.

    Args:
        argv: the arguments, without the program's name.
        environ: the environment.
        directory: where relative paths start.
    """
    line = parse(argv)
    faults = list(line.faults)
    environment = Environment(environ)
    given = {variable: _read_variable(environment, variable, faults) for variable in _ARGUMENTS}
    variables: list[FileVariable] = []
    file_faults: list[ConfigError] = []
    for location in _env_files(environment, [*chain(*given.values()), *line.given]):
        found, more = read_env_file(location, directory)
        variables += found
        file_faults += more
    if variables:
        environment = environment.with_files(variables)
        given |= {each: _read_variable(environment, each, faults) for each in _ARGUMENTS if each in environment.files}
        file_faults += _nested_files(environment, given)
        variables = [each._replace(used=environment.files.get(each.name) is each) for each in variables]
    arguments = [*chain(*given.values()), *line.given]
    return Sources(environment, arguments, variables, [*faults, *file_faults], not file_faults)


def _read_variable(environment: Environment, variable: str, faults: list[ConfigError]) -> list[Given]:
    """Return the settings given by the arguments in an environment variable."""
    text = environment.text(variable)
    if not text:
        return []
    import shlex  # most environments have no such variable

    try:
        argv = shlex.split(text)
    except ValueError as error:
        faults.append(
            ConfigError(
                f"WS1005 {variable} = {mask_text(text)!r} {environment.place(variable)} cannot be split: {error}. "
                "Accepted: flags as on a command line, with quotes that close."
            )
        )
        return []
    place = f" {environment.place(variable)}" if variable in environment.files else ""
    line = parse(argv, f"in {variable}{place}")
    faults += line.faults
    return line.given


def _env_files(environment: Environment, arguments: Sequence[Given]) -> Sequence[str]:
    """Return the paths of the environment files; the later one's variables win."""
    raw = last_given(arguments, "env_file")
    variable = last_own(environment, "env_file")
    if raw is None and variable is not None:
        try:
            raw = raw_value(variable.setting, variable.text)
        except ValueError:
            return ()  # reported where the value is taken
    return [path.strip() for path in raw if isinstance(path, str) and path.strip()] if isinstance(raw, list) else ()


def _nested_files(environment: Environment, given: Mapping[str, Sequence[Given]]) -> list[ConfigError]:
    """Return a fault for each place in environment files that names an environment file."""
    own = last_own(environment, "env_file")
    names = [own.variable] if own is not None else []
    names += [variable for variable in _ARGUMENTS if any(each.name == "env_file" for each in given[variable])]
    # Else it would depend on their order which file's variables win.
    return [
        ConfigError(
            f"WS1067 {environment.files[name].place}: {name} names an environment file, which such a file cannot do. "
            "Accepted: --env-file FILE, which may be repeated; or WSGISERV_ENV_FILE in the environment."
        )
        for name in names
        if name in environment.files
    ]
