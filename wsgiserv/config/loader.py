"""From the command line, the environment and the configuration file to frozen `Settings`.

Owns: the precedence (defaults, configuration file, environment, flags), the checks between settings, the
notices about what was accepted and means something else here.
Must not know: what the rest of wsgiserv does with a setting.

Loading changes nothing of the process, but that a configuration file is run: see `read_config_file`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from wsgiserv.config.argv import Given, parse
from wsgiserv.config.file import ConfigFile, find_config_file, line_of, plain_value, read_config_file
from wsgiserv.config.gunicorn_compat import FOREIGN
from wsgiserv.config.settings import SETTINGS, Settings
from wsgiserv.config.values import TooLarge
from wsgiserv.errors import ConfigError
from wsgiserv.safe_open import working_directory

__all__ = ["Loaded", "load", "start_directory"]

_FLAG = "on the command line"
_OWN_ARGUMENTS = "WSGISERV_CMD_ARGS"
_GUNICORN_ARGUMENTS = "GUNICORN_CMD_ARGS"

_WORKER_CLASS_NAMES = ("worker_class", *SETTINGS["worker_class"].aliases)

# nogroup, which owns nothing. Not the user's number: that may be the number of a group that has rights.
_NO_GROUP = 65534

_BY_ALIAS = {alias: name for name, setting in SETTINGS.items() for alias in setting.aliases}
_BY_OLD_NAME = {old: name for name, setting in SETTINGS.items() for old in setting.old_names}


class Loaded(NamedTuple):
    """A configuration.

    Attributes:
        settings: the values.
        sources: for every setting, where its value came from.
        notices: one line each, for the log at the start.
        config_path: the absolute path of the configuration file, which ``reload`` watches; None without one.
    """

    settings: Settings
    sources: dict[str, str]
    notices: list[str]
    config_path: str | None


def load(
    argv: Sequence[str],
    environ: Mapping[str, str],
    directory: str | None = None,
    before_gevent: Callable[[], None] | None = None,
    known_chdir: Callable[[str], bool] | None = None,
) -> Loaded:
    """Make the configuration.

    Args:
        argv: the arguments, without the program's name.
        environ: the environment.
        directory: where relative paths start: the command's working directory. To load again after a
            ``chdir``, give the same one as the first time.
        known_chdir: tells whether a ``chdir`` has been served from before, at a reload or after an upgrade: then it
            may have been removed since.
        before_gevent: called before a configuration file is run, where it is known by then that the workers are to
            be gevent's: what the file imports is to be patched.

    Raises:
        ConfigError: naming the setting, the value, where it came from and what is accepted.
    """
    loader = _Loader(directory or start_directory(environ), before_gevent, known_chdir)
    flags = parse(argv).given
    gunicorn_arguments = _arguments_from(environ, _GUNICORN_ARGUMENTS)
    own_arguments = _arguments_from(environ, _OWN_ARGUMENTS)

    loader.take_default("forwarded_allow_ips", environ, "FORWARDED_ALLOW_IPS")
    loader.take_default("sendfile", environ, "SENDFILE")
    loader.run_config_file([*gunicorn_arguments, *own_arguments, *flags])
    loader.take_variable("workers", environ.get("WEB_CONCURRENCY"), "WEB_CONCURRENCY")
    port = environ.get("PORT")
    loader.take_variable("bind", f"0.0.0.0:{port.strip()}" if port else None, "PORT")
    if gunicorn_arguments:
        loader.notices.append(
            f"using {_GUNICORN_ARGUMENTS} from the environment; {_OWN_ARGUMENTS} would go before it"
        )
    loader.take_arguments(gunicorn_arguments, f"in {_GUNICORN_ARGUMENTS}")
    loader.take_arguments(own_arguments, f"in {_OWN_ARGUMENTS}")
    loader.take_arguments(flags, _FLAG)
    return loader.finish()


def start_directory(environ: Mapping[str, str]) -> str:
    """Return the working directory; under the name the shell has for it, if that is a symbolic link to it.

    Of a directory that has been removed, the name. A release may be removed before the next master is started there.
    """
    name = environ.get("PWD", "")
    try:
        directory = os.getcwd()
    except FileNotFoundError:
        return name if os.path.isabs(name) else working_directory()
    try:
        if os.path.isabs(name) and os.path.samefile(name, directory):
            return name
    except OSError:
        pass
    return directory


def _arguments_from(environ: Mapping[str, str], variable: str) -> list[Given]:
    text = environ.get(variable, "").strip()
    if not text:
        return []
    import shlex

    try:
        return parse(shlex.split(text), f"in {variable}").given
    except ValueError as error:
        raise ConfigError(
            f"{variable} = {text!r} in the environment cannot be split: {error}. "
            "Expected flags as on a command line, with quotes that close."
        ) from None


class _Loader:
    """The values so far, with their sources; later calls win over earlier ones."""

    def __init__(
        self,
        directory: str,
        before_gevent: Callable[[], None] | None = None,
        known_chdir: Callable[[str], bool] | None = None,
    ) -> None:
        self.directory = directory
        self.known_chdir = known_chdir
        self._before_gevent = before_gevent
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.notices: list[str] = []
        self.file: ConfigFile | None = None
        self.file_config: str | None = None

    def take(self, name: str, raw: object, source: str) -> None:
        """Parse a value of one of our settings and note it."""
        setting = SETTINGS[name]
        try:
            value = setting.parse(raw)
        except ConfigError:
            raise
        except Exception as error:  # also what the attributes of an odd object raise
            reason = "" if _says_nothing(error) else f": {error}"
            shown = _shown(raw)
            place = source
            if self.file is not None and source == self.file.location:
                place = self._place(name)
            if not (setting.clamped and isinstance(error, TooLarge)):
                raise ConfigError(
                    f"{name} = {shown} ({place}) is not accepted{reason}. Expected {setting.accepts}."
                ) from None
            value = setting.parse(error.largest)
            self.notices.append(f"{name} = {shown} ({place}) is too large: {error}, which is used instead")
        self.values[name] = value
        self.sources[name] = source

    def take_default(self, name: str, environ: Mapping[str, str], variable: str) -> None:
        """Take an environment variable that stands for a setting's default."""
        raw = environ.get(variable)
        if raw:
            self.take(name, raw, f"{variable} in the environment")

    def take_variable(self, name: str, raw: str | None, variable: str) -> None:
        """Take an environment variable that goes before the configuration file."""
        if not raw or not raw.strip():
            return
        before, source = self.values.get(name), self.sources.get(name)
        self.take(name, raw, f"{variable} in the environment")
        if before is not None and before != self.values[name]:
            self.notices.append(
                f"{variable} in the environment goes before {name} in {source}: "
                f"{name} is {_first(self.values[name])}"
            )

    def take_arguments(self, arguments: Sequence[Given], where: str) -> None:
        """Take what flags give."""
        for name, raw, flag in arguments:
            source = f"{flag} {where}" if flag else where
            if name in SETTINGS:
                self.take(name, raw, source)
            elif not FOREIGN[name].is_default(raw):
                self.notices.append(f"{flag} ({where}) is ignored: {FOREIGN[name].instead}")

    def run_config_file(self, arguments: Sequence[Given]) -> None:
        """Run the configuration file that the arguments name last, or the one found by itself."""
        named = [str(given.raw) for given in arguments if given.name == "config" and given.raw]
        if named:
            location = named[-1]
        else:
            found = find_config_file(self.directory)
            if found is None:
                return
            location = os.path.basename(found)
            if location.startswith("gunicorn"):
                self.notices.append(
                    f"using the configuration file {found}, since there is no wsgiserv.conf.py beside it"
                )
        if self._before_gevent is not None:
            given = [given.raw for given in arguments if given.name == "worker_class"]
            wanted = given[-1] if given else plain_value(location, self.directory, _WORKER_CLASS_NAMES)
            if _is_gevent(wanted):
                self._before_gevent()
        self.file = read_config_file(location, self.directory)
        if not named:
            self.sources["config"] = "found by itself"
        self.file_config = location if location.startswith("python:") else self.file.path
        for name, raw in list(self.file.names.items()):
            self._take_from_file(name, raw)

    def _take_from_file(self, name: str, raw: object) -> None:
        assert self.file is not None
        known = _BY_ALIAS.get(name, name)
        if name in _BY_OLD_NAME:
            self._take_old(name, _BY_OLD_NAME[name], raw)
        elif known in SETTINGS:
            if not SETTINGS[known].in_file:
                return
            # A module imported under a setting's name ("import threads") is the user's own.
            if raw is not None and not issubclass(type(raw), ModuleType):
                self.take(known, raw, self.file.location)
        elif name in FOREIGN:
            foreign = FOREIGN[name]
            if callable(raw) and not foreign.function and foreign.name != "logger_class":
                return
            if not issubclass(type(raw), ModuleType) and not foreign.is_default(raw):
                self.notices.append(f"{name} ({self._place(name)}) is ignored: {foreign.instead}")
        elif _may_be_mistyped(name, raw):
            from difflib import get_close_matches

            near = get_close_matches(name, [*SETTINGS, *_BY_ALIAS], n=1, cutoff=0.8)
            if near:
                self.notices.append(
                    f"{name} ({self._place(name)}) is not a setting and is ignored: did you mean {near[0]}?"
                )

    def _take_old(self, name: str, known: str, raw: object) -> None:
        """Take a value under a name that gunicorn had once."""
        assert self.file is not None
        if raw is None or callable(raw) or isinstance(raw, ModuleType):
            return  # the user's own
        place = self._place(name)
        if known in self.file.names:
            self.notices.append(
                f"{name} ({place}) is ignored: it is gunicorn's old name of {known}, which is set, too"
            )
            return
        self.take(known, raw, self.file.location)
        self.notices.append(
            f"{name} ({place}) is gunicorn's old name of {known}, and is taken as that: rename it"
        )

    def _place(self, name: str) -> str:
        assert self.file is not None
        line = line_of(self.file.path, name)
        if line is None:
            setting = SETTINGS.get(name)
            for alias in (*setting.aliases, *setting.old_names) if setting is not None else ():
                line = line or line_of(self.file.path, alias)
        return f"{self.file.location} line {line}" if line else self.file.location

    def finish(self) -> Loaded:
        """Check the settings against each other and freeze them."""
        values, sources = self.values, self.sources
        chdir = os.path.normpath(os.path.join(self.directory, values.get("chdir", ".")))
        # The directory of the start may have been removed since then, and one that has been served from, too.
        is_known = "chdir" not in values or (self.known_chdir is not None and self.known_chdir(chdir))
        if not is_known and not os.path.isdir(chdir):
            raise ConfigError(
                f"chdir = {values['chdir']!r} ({sources['chdir']}): {chdir} is not a directory. "
                "Expected a directory that exists."
            )
        values["chdir"] = chdir
        values["config"] = self.file_config
        for pattern in values.get("reload_extra_files", ()):
            if not any(sign in pattern for sign in "*?[") and not os.path.exists(
                os.path.join(chdir, pattern)
            ):
                raise ConfigError(
                    f"reload_extra_files = {pattern!r} ({sources['reload_extra_files']}): {chdir} has no "
                    f"such file. Expected {SETTINGS['reload_extra_files'].accepts}."
                )
        if values.get("keyfile") and not values.get("certfile"):
            raise ConfigError(
                f"keyfile = {values['keyfile']!r} ({sources['keyfile']}) is given without a certificate. "
                "Expected certfile beside it: --certfile FILE."
            )
        if values.get("sni_certificates") and not values.get("certfile"):
            raise ConfigError(
                f"sni_certificates ({sources['sni_certificates']}) is given without the certificate that clients get "
                "who name no host, or another. Expected certfile beside it: --certfile FILE."
            )
        if values.get("worker_class", "sync") == "sync" and values.get("threads", 1) > 1:
            values["worker_class"] = "threads"
            sources["worker_class"] = f"threads = {values['threads']} ({sources['threads']})"
        self._size_workers()
        if values.get("wsgi_app") and "default_proc_name" not in values:
            values["default_proc_name"] = values["wsgi_app"]
            sources["default_proc_name"] = "wsgi_app"
        if not values.get("proc_name") and "default_proc_name" in values:
            values["proc_name"] = values["default_proc_name"]
            sources["proc_name"] = "default_proc_name"
        self._fill_group()
        settings = Settings(**values)
        return Loaded(
            settings,
            {name: sources.get(name, "default") for name in SETTINGS},
            self.notices,
            self.file.path if self.file is not None else None,
        )

    def _fill_group(self) -> None:
        """Give workers of root's that are another user's that user's primary group: root's is not to stay with them."""
        values, sources = self.values, self.sources
        uid = values.get("user", 0)
        if not uid or "group" in values or os.geteuid() != 0:
            return
        import pwd

        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            values["group"], sources["group"] = _NO_GROUP, f"user = {uid} is in no user database"
            self.notices.append(
                f"user = {uid} ({sources['user']}) is in no user database: the workers get the group {_NO_GROUP} and "
                "HOME=/. Set group, and HOME in raw_env, to have others"
            )
            return
        values["group"], sources["group"] = entry.pw_gid, f"the primary group of {entry.pw_name}"

    def _size_workers(self) -> None:
        """Replace ``auto`` by what fits the container, and check `workers` against the bounds of scaling."""
        values, sources = self.values, self.sources
        sized = [name for name in ("workers", "workers_max") if values.get(name) == 0]
        if sized:
            count, words = self._fitting_workers()
            for name in sized:
                values[name] = count
                sources[name] += f", 'auto': {words}"
        least, most = values.get("workers_min"), values.get("workers_max")
        if least is None and most is None:
            return
        given, missing = ("workers_max", "workers_min") if least is None else ("workers_min", "workers_max")
        if least is None or most is None:
            raise ConfigError(
                f"{given} = {values[given]} ({sources[given]}) is given without {missing}. Expected both, so that the "
                f"number of workers follows the load: --{missing.replace('_', '-')} N; or workers alone."
            )
        if "workers_max" in sized:
            values["workers_max"] = most = max(least, most)
        if "workers_max" not in sized and least > most:
            raise ConfigError(
                f"workers_min = {least} ({sources['workers_min']}) is above workers_max = {most} "
                f"({sources['workers_max']}). Expected workers_min to be at most workers_max."
            )
        if "workers" not in values or "workers" in sized:
            values["workers"] = min(max(values.get("workers", least), least), most)
            before = f"{sources['workers']}, within " if "workers" in sources else ""
            sources["workers"] = f"{before}workers_min ({sources['workers_min']})"
        elif not least <= values["workers"] <= most:
            raise ConfigError(
                f"workers = {values['workers']} ({sources['workers']}) is not within workers_min = {least} "
                f"({sources['workers_min']}) and workers_max = {most} ({sources['workers_max']}). Expected the number "
                "to begin with; leave it out to begin with workers_min."
            )

    def _fitting_workers(self) -> tuple[int, str]:
        """Return how many workers fit this container, and what that is made of."""
        from wsgiserv.config import cgroup as sizing

        cgroups = sizing.own_cgroups()
        cpus = sizing.available_cpus(sizing.cpu_quota(sizing.CGROUP_ROOT, cgroups))
        memory = sizing.memory_limit(sizing.CGROUP_ROOT, cgroups)
        worker_class = self.values.get("worker_class", "sync")
        memory_words = "no memory limit" if memory is None else f"{memory >> 20} MiB"
        return (
            sizing.fitting_workers(worker_class, cpus, memory),
            f"{cpus:g} CPU{'s' * (cpus != 1)}, {memory_words}",
        )


def _is_gevent(raw: object) -> bool:
    if not isinstance(raw, str):
        return False
    try:
        return bool(SETTINGS["worker_class"].parse(raw) == "gevent")
    except (ValueError, TypeError):
        return False  # it is refused when its turn comes


def _says_nothing(error: Exception) -> bool:
    """Tell whether the message adds nothing to what is accepted: it is empty, or int()'s own."""
    return not str(error) or str(error).startswith(("invalid literal for int", "could not convert"))


def _shown(raw: object) -> str:
    try:
        return repr(raw if len(repr(raw)) <= 200 else f"{str(raw)[:200]}...")
    except Exception:  # of an odd object
        return f"<{type(raw).__qualname__}>"


def _first(value: object) -> object:
    return value[0] if isinstance(value, tuple) else value


def _may_be_mistyped(name: str, raw: object) -> bool:
    return (
        name.islower()
        and not name.startswith("_")
        and issubclass(type(raw), (str, bytes, int, float, list, tuple, dict, set, type(None)))
    )
