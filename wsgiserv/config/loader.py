"""Loads the configuration: command line, environment and configuration file become frozen `Settings`.

Defaults < configuration file < environment < flags. All faults are collected, not the first only. Loading
changes nothing of the process, but for the configuration file's own code: see `read_config_file`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

from wsgiserv.config.argv import Given, parse
from wsgiserv.config.file import ConfigFile, find_config_file, line_of, plain_value, read_config_file
from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.hook_config import remember_unused
from wsgiserv.config.setting import Setting
from wsgiserv.config.settings import SETTINGS, Settings
from wsgiserv.config.values import TooLarge
from wsgiserv.config.worker_class import known, patches_library, resolve
from wsgiserv.errors import ConfigError
from wsgiserv.library_first import LibraryFirst
from wsgiserv.safe_open import NO_GROUP, working_directory
from wsgiserv.wording import did_you_mean, nearest

_OWN_ARGUMENTS = "WSGISERV_CMD_ARGS"
_GUNICORN_ARGUMENTS = "GUNICORN_CMD_ARGS"

_WORKER_CLASS_NAMES = ("worker_class", *SETTINGS["worker_class"].aliases)

_BY_ALIAS = {alias: name for name, setting in SETTINGS.items() for alias in setting.aliases}
_BY_OLD_NAME = {old: name for name, setting in SETTINGS.items() for old in setting.old_names}


class Loaded(NamedTuple):
    """A configuration, with its faults.

    Attributes:
        settings: the values; a setting with a fault has a lower source's value, or its default.
        sources: for every setting, the source of its value.
        notices: one line each, for the log at the start.
        config_path: the absolute path of the configuration file, for ``reload`` to watch; None without one.
        faults: all faults.
        faulty: the names of the settings with a fault; of all settings, when the configuration file cannot be run.
    """

    settings: Settings
    sources: dict[str, str]
    notices: list[str]
    config_path: str | None
    faults: list[ConfigError]
    faulty: set[str]

    def raise_faults(self) -> None:
        """Raise ConfigError of all faults, if there are any."""
        if self.faults:
            raise ConfigError.of(self.faults)


def load(argv: Sequence[str], environ: Mapping[str, str], directory: str | None = None) -> Loaded:
    """Return the configuration; arguments as for `collect`.

    Raises:
        ConfigError: all faults, each with the setting, the value, its source and the accepted values.
    """
    loaded = collect(argv, environ, directory)
    loaded.raise_faults()
    return loaded


def collect(
    argv: Sequence[str],
    environ: Mapping[str, str],
    directory: str | None = None,
    before_gevent: Callable[[], None] | None = None,
    known_chdir: Callable[[str], bool] | None = None,
) -> Loaded:
    """Return the configuration and its faults.

    Args:
        argv: the arguments, without the program's name.
        environ: the environment.
        directory: where relative paths start: the command's working directory. To load again after a
            ``chdir``, give the same one as the first time.
        before_gevent: called before a configuration file is run, if the workers are known to be gevent's by then: its
            imports are to be patched.
        known_chdir: tells whether a ``chdir`` has been served from before, at a reload or after an upgrade: then it
            may have been removed since.
    """
    loader = _Loader(directory or start_directory(environ), before_gevent, known_chdir)
    # All three are read before the file is run: one of them may name it.
    flags = loader.read_line(argv)
    gunicorn_arguments = loader.read_variable(environ, _GUNICORN_ARGUMENTS)
    own_arguments = loader.read_variable(environ, _OWN_ARGUMENTS)

    # As in gunicorn these two stand below the file: they are meant as the host's defaults.
    loader.take_variable("forwarded_allow_ips", environ.get("FORWARDED_ALLOW_IPS"), "FORWARDED_ALLOW_IPS")
    loader.take_variable("sendfile", environ.get("SENDFILE"), "SENDFILE")
    arguments = [*gunicorn_arguments, *own_arguments, *flags]
    loader.run_config_file(arguments)
    # Platforms set these for each instance (Heroku: dynos), while the file is the same on all: they go before it.
    loader.take_variable("workers", environ.get("WEB_CONCURRENCY", "").strip(), "WEB_CONCURRENCY")
    port = environ.get("PORT")
    loader.take_variable("bind", f"0.0.0.0:{port.strip()}" if port else None, "PORT")
    if gunicorn_arguments:
        loader.note(f"WS1032 using {_GUNICORN_ARGUMENTS} from the environment; {_OWN_ARGUMENTS} would go before it")
    loader.take_arguments(arguments)
    return loader.finish()


def start_directory(environ: Mapping[str, str]) -> str:
    """Return the working directory, under the shell's name for it (PWD), if that is a symbolic link to it.

    A removed directory has its name only: a release may be removed before the next master is started there.
    """
    name = environ.get("PWD", "")
    try:
        directory = os.getcwd()
    except FileNotFoundError:
        return name if os.path.isabs(name) else working_directory()
    # Under the link's name the directory of the next release is found, too, by a reload or an upgrade.
    with suppress(OSError):
        if os.path.isabs(name) and os.path.samefile(name, directory):
            return name
    return directory


@dataclass
class _Loader:
    """The values so far, with their sources; later calls win over earlier ones."""

    directory: str
    before_gevent: Callable[[], None] | None
    known_chdir: Callable[[str], bool] | None
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    faults: list[ConfigError] = field(default_factory=list)
    # Settings with a fault: what depends on them is not checked, since it would be a fault that is none.
    faulty: set[str] = field(default_factory=set)
    file: ConfigFile | None = None
    file_config: str | None = None
    # What gunicorn's settings without a use here have been given, for hooks that read them.
    unused: dict[str, object] = field(default_factory=dict)

    def note(self, notice: str) -> None:
        """Note a line for the log."""
        self.notices.append(notice)

    # ---- sources ---------------------------------------------------------------------------------------

    def read_line(self, argv: Sequence[str], *where: str) -> list[Given]:
        """Return the settings given by arguments; ``where`` as of `parse`."""
        line = parse(argv, *where)
        self.faults += line.faults
        return line.given

    def read_variable(self, environ: Mapping[str, str], variable: str) -> list[Given]:
        """Return the settings given by the arguments in an environment variable."""
        text = environ.get(variable, "").strip()
        if not text:
            return []
        import shlex  # most environments have no such variable

        try:
            argv = shlex.split(text)
        except ValueError as error:
            accepted = "flags as on a command line, with quotes that close"
            written = f"{text!r} in the environment"
            self._refuse("WS1005", variable, f"cannot be split: {error}.", accepted, written)
            return []
        return self.read_line(argv, f"in {variable}")

    def take(self, name: str, raw: object, source: str) -> None:
        """Parse a value of one of our settings and note it."""
        setting = SETTINGS[name]
        try:
            value = setting.parse(raw)
        except Exception as error:  # also what the attributes of an odd object raise
            # Looking for the line parses the file: only for a message.
            is_from_file = self.file is not None and source == self.file.location
            written = f"{_shown(raw)} ({self._place(name) if is_from_file else source})"
            if not (setting.clamped and isinstance(error, TooLarge)):
                reason = "" if _says_nothing(error) else f": {error}"
                problem = f"is not accepted{reason}.{_nearest_choice(setting, raw)}"
                self._refuse("WS1010", name, problem, written=written)
                return
            # gunicorn takes any number; a file written for it must start here, too.
            value = setting.parse(error.largest)
            self.note(f"WS1030 {name} = {written} is too large: {error}, which is used instead")
        self._set(name, value, source)

    def _set(self, name: str, value: object, source: str) -> None:
        self.values[name] = value
        self.sources[name] = source

    def _refuse(self, code: str, name: str, problem: str, accepted: str = "", written: str = "") -> None:
        """Note a fault of a setting.

        Args:
            code: the message's code.
            name: the setting.
            problem: the predicate of the sentence about it, with its full stop.
            accepted: the accepted values, where the declaration's text is not used.
            written: the value and its source; empty for those in force.
        """
        accepted = accepted or SETTINGS[name].accepts
        written = written or self._written(name)
        self.faults.append(ConfigError(f"{code} {name} = {written} {problem} Accepted: {accepted}."))
        self.faulty.add(name)

    def _written(self, name: str) -> str:
        return f"{self.values[name]!r} ({self.sources[name]})"

    def take_variable(self, name: str, raw: str | None, variable: str) -> None:
        """Take an environment variable, unless it is empty: some platforms declare all of theirs, also unset ones."""
        if not raw:
            return
        before, source = self.values.get(name), self.sources.get(name)
        self.take(name, raw, f"{variable} in the environment")
        after = self.values.get(name)
        # A person who edits the file must not wonder why nothing changes.
        if before is not None and before != after:
            shown = after[0] if isinstance(after, tuple) else after
            self.note(f"WS1031 {variable} in the environment goes before {name} in {source}: {name} is {shown}")

    def take_arguments(self, arguments: Sequence[Given]) -> None:
        """Take the values of flags."""
        for name, raw, flag, where in arguments:
            if name in SETTINGS:
                self.take(name, raw, f"{flag} {where}" if flag else where)
            elif not GUNICORN_ONLY[name].is_default(raw):
                self.unused[name] = raw
                self._ignore(flag, where, name)

    def _ignore(self, written: str, place: str, name: str) -> None:
        self.note(f"WS1033 {written} ({place}) is ignored: {GUNICORN_ONLY[name].instead}")

    # ---- the configuration file ------------------------------------------------------------------------

    def run_config_file(self, arguments: Sequence[Given]) -> None:
        """Run the configuration file named last by the arguments, or the default one if it is there."""
        named = _last(arguments, "config")
        location = str(named) if named else find_config_file(self.directory)
        if location is None:
            return
        if not named and location.startswith("gunicorn"):
            found = os.path.join(self.directory, location)
            self.note(f"WS1034 using the configuration file {found}, since there is no wsgiserv.conf.py beside it")
        # gevent cannot patch names that a module has imported already, so it comes before the file's own imports.
        if self.before_gevent is not None:
            wanted = _last(arguments, "worker_class")
            wanted = wanted or plain_value(location, self.directory, _WORKER_CLASS_NAMES)
            if _is_patching(wanted):
                self.before_gevent()
        try:
            self.file = read_config_file(location, self.directory)
        except ConfigError as error:
            self.faults.append(error)
            self.faulty.update(SETTINGS)  # it might have set any
            return
        if not named:
            self.sources["config"] = "found by itself"
        self.file_config = location if location.startswith("python:") else self.file.path
        # A copy: a worker class given as a function is called here, and may set globals of the file.
        for name, raw in list(self.file.names.items()):
            self._take_from_file(self.file, name, raw)

    def _take_from_file(self, file: ConfigFile, name: str, raw: object) -> None:
        known = _BY_ALIAS.get(name, name)
        # A module imported under a setting's name ("import threads") is the user's own.
        if issubclass(type(raw), ModuleType):
            return
        if name in _BY_OLD_NAME:
            # logfile = open(...), or a function of that name, is no log's path.
            if raw is not None and not callable(raw):
                self._take_old(file, name, _BY_OLD_NAME[name], raw)
        elif known in SETTINGS:
            if SETTINGS[known].in_file and raw is not None:
                self.take(known, raw, file.location)
        elif name in GUNICORN_ONLY:
            ignored = GUNICORN_ONLY[name]
            # A function or class under such a name, `debug` or `paste`, is the file's own helper.
            is_own = callable(raw) and not ignored.function and name != "logger_class"
            if not is_own and not ignored.is_default(raw):
                self.unused[name] = raw
                self._ignore(name, self._place(name), name)
        elif _may_be_mistyped(name, raw):
            # 0.8: a file has variables of its own, and a notice about one of these is noise at each start.
            near = nearest(name, [*SETTINGS, *_BY_ALIAS], limit=1, cutoff=0.8)
            if near:
                self.note(f"WS1035 {name} ({self._place(name)}) is not a setting and is ignored. {did_you_mean(near)}")

    def _take_old(self, file: ConfigFile, name: str, known: str, raw: object) -> None:
        """Take a value under a former name of gunicorn's."""
        place = self._place(name)
        if known in file.names:
            self.note(f"WS1036 {name} ({place}) is ignored: it is gunicorn's old name of {known}, which is set, too")
            return
        self.take(known, raw, file.location)
        self.note(f"WS1037 {name} ({place}) is gunicorn's old name of {known}, and is taken as that: rename it")

    def _place(self, name: str) -> str:
        assert self.file is not None
        setting = SETTINGS.get(name)
        names = (name, *setting.aliases, *setting.old_names) if setting is not None else (name,)
        lines = (line_of(self.file.path, each) for each in names)
        line = next(filter(None, lines), None)
        return f"{self.file.location} line {line}" if line else self.file.location

    # ---- settings that depend on each other --------------------------------------------------------------

    def finish(self) -> Loaded:
        """Check the settings against each other and freeze them."""
        values, sources = self.values, self.sources
        self._check_files()
        values["config"] = self.file_config
        kind, threads = values.get("worker_class", "sync"), values.get("threads", 1)
        if resolve(kind, threads) != kind:
            self._set("worker_class", resolve(kind, threads), f"threads = {threads} ({sources['threads']})")
        # After the class: `auto` depends on it.
        self._size_workers()
        # gunicorn's order; the process title and the hooks read `proc_name` alone.
        if values.get("wsgi_app") and "default_proc_name" not in values:
            self._set("default_proc_name", values["wsgi_app"], "wsgi_app")
        if not values.get("proc_name") and "default_proc_name" in values:
            self._set("proc_name", values["default_proc_name"], "default_proc_name")
        self._fill_group()
        settings = Settings(**values)
        remember_unused(settings, self.unused)
        return Loaded(
            settings,
            {name: sources.get(name, "default") for name in SETTINGS},
            self.notices,
            self.file.path if self.file is not None else None,
            self.faults,
            self.faulty,
        )

    def _check_files(self) -> None:
        """Complete `chdir`, and check the settings with files against it and against each other."""
        values, sources = self.values, self.sources
        # Against the directory of the start, not the present one, which is a former `chdir` at a reload.
        chdir = os.path.normpath(os.path.join(self.directory, values.get("chdir", ".")))
        # The directory of the start may have been removed since then, and one that has been served from, too.
        is_known = "chdir" not in values or (self.known_chdir is not None and self.known_chdir(chdir))
        if not is_known and not os.path.isdir(chdir):
            self._refuse("WS1011", "chdir", f"is not a directory: {chdir}.")
        values["chdir"] = chdir
        for pattern in values.get("reload_extra_files", ()) if "chdir" not in self.faulty else ():
            # A pattern may match nothing yet; a plain name that is not there is a slip.
            if set("*?[").isdisjoint(pattern) and not os.path.exists(os.path.join(chdir, pattern)):
                written = f"{pattern!r} ({sources['reload_extra_files']})"
                problem = f"is not there: {chdir} has no such file."
                self._refuse("WS1012", "reload_extra_files", problem, written=written)
        if values.get("certfile") or "certfile" in self.faulty:
            return
        for code, name in (("WS1013", "keyfile"), ("WS1014", "sni_certificates")):
            if values.get(name):
                accepted = "with certfile beside it: --certfile FILE"
                self._refuse(code, name, "is given without a certificate.", accepted)

    def _fill_group(self) -> None:
        """Give workers of root under another user the primary group of the latter."""
        # In root's group they would keep that group's rights.
        uid = self.values.get("user", 0)
        if not uid or "group" in self.values or os.geteuid() != 0:
            return
        import pwd

        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            self._set("group", NO_GROUP, f"user = {uid} is in no user database")
            self.note(
                f"WS1038 user = {uid} ({self.sources['user']}) is in no user database: the workers get the group "
                f"{NO_GROUP} and HOME=/. Set group, and HOME in raw_env, to have others"
            )
        else:
            self._set("group", entry.pw_gid, f"the primary group of {entry.pw_name}")

    def _size_workers(self) -> None:
        """Replace ``auto`` by the container's number, and check `workers` against the bounds of scaling."""
        values, sources = self.values, self.sources
        sized = [name for name in ("workers", "workers_max") if values.get(name) == 0]
        if sized:
            count, reason = self._fitting_workers()
            for name in sized:
                self._set(name, count, f"{sources[name]}, 'auto': {reason}")
        least, most = values.get("workers_min"), values.get("workers_max")
        if (least is None and most is None) or not self.faulty.isdisjoint(("workers", "workers_min", "workers_max")):
            return
        if least is None or most is None:
            given, missing = ("workers_max", "workers_min") if least is None else ("workers_min", "workers_max")
            accepted = (
                "both, so that the number of workers follows the load: "
                f"--{missing.replace('_', '-')} N; or workers alone"
            )
            self._refuse("WS1015", given, f"is given without {missing}.", accepted)
            return
        if "workers_max" in sized:
            # A small container must not turn a good file into a fault.
            values["workers_max"] = most = max(least, most)
        shown = self._written("workers_max")
        if least > most:
            above = f"is above workers_max = {shown}."
            self._refuse("WS1016", "workers_min", above, "workers_min up to workers_max")
        elif "workers" not in values or "workers" in sized:
            before = f"{sources['workers']}, within " if "workers" in sources else ""
            number = min(max(values.get("workers", least), least), most)
            self._set("workers", number, f"{before}workers_min ({sources['workers_min']})")
        elif not least <= values["workers"] <= most:
            outside = f"is not within workers_min = {self._written('workers_min')} and workers_max = {shown}."
            accepted = "the number to begin with; leave it out to begin with workers_min"
            self._refuse("WS1017", "workers", outside, accepted)

    def _fitting_workers(self) -> tuple[int, str]:
        """Return how many workers fit this container, and the figures behind that."""
        from wsgiserv.config import cgroup as sizing

        cgroups = sizing.own_cgroups()
        cpus = sizing.available_cpus(sizing.cpu_quota(sizing.CGROUP_ROOT, cgroups))
        memory = sizing.memory_limit(sizing.CGROUP_ROOT, cgroups)
        # By the effective class: sync waits during calls, and takes more workers than CPUs.
        try:
            kind = known(self.values.get("worker_class", "sync"))
        except ImportError:  # gevent is not installed: a fault, which the check of the class reports
            kind = None
        count = sizing.fitting_workers(getattr(kind, "workers_per_cpu", 1), cpus, memory)
        limit = "no memory limit" if memory is None else f"{memory >> 20} MiB"
        return count, f"{cpus:g} CPU{'s' * (cpus != 1)}, {limit}"


def _last(arguments: Sequence[Given], name: str) -> object:
    return next((given.raw for given in reversed(arguments) if given.name == name and given.raw), None)


def _is_patching(raw: object) -> bool:
    try:
        with LibraryFirst():  # imports the module of a class of ours, and gevent for its own alone
            return patches_library(SETTINGS["worker_class"].parse(raw))
    except (ValueError, TypeError):
        return False  # `take` will refuse it


def _nearest_choice(setting: Setting, raw: Any) -> str:
    if not issubclass(type(raw), str):  # not isinstance(): __class__ of a proxy may raise
        return ""
    near = nearest(raw.strip().lower(), setting.kind.choices, limit=1)
    return f" {did_you_mean(map(repr, near))}" if near else ""


def _says_nothing(error: Exception) -> bool:
    """Tell whether the message adds nothing to the accepted values."""
    # int() and float() repeat the value, which the fault has already.
    return not str(error) or str(error).startswith(("invalid literal for int", "could not convert"))


def _shown(raw: object) -> str:
    # A configuration file may give a large object by mistake; repr() of a dictionary of a million rows is no message.
    try:
        return repr(raw if len(repr(raw)) <= 200 else f"{str(raw)[:200]}...")
    except Exception:  # of an odd object
        return f"<{type(raw).__qualname__}>"


def _may_be_mistyped(name: str, raw: object) -> bool:
    # Constants, private names, classes and functions are the file's own; a setting's value is plain data.
    return (
        name.islower()
        and not name.startswith("_")
        and issubclass(type(raw), (str, bytes, int, float, list, tuple, dict, set, type(None)))
    )
