"""Loads the configuration: command line, environment and configuration file become frozen `Settings`.

Defaults < variables of platforms (PORT ...) < WSGISERV_<NAME> < configuration file < GUNICORN_CMD_ARGS <
WSGISERV_CMD_ARGS < flags. All faults are collected, not the first only. Loading changes nothing of the process, but for
the configuration file's own code (see `read_config_file`), and where the caller asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from wsgiserv.config.argv import Given
from wsgiserv.config.daemon_address import check_syslog
from wsgiserv.config.env_file import FileVariable
from wsgiserv.config.environment import (
    GUNICORN_ARGUMENTS,
    OWN_ARGUMENTS,
    Environment,
    accepted_in_variable,
    gunicorns_variables,
    last_own,
    own_variables,
    platform_variable,
    raw_value,
    unknown_variables,
)
from wsgiserv.config.file import ConfigFile, find_config_file, last_read, line_of, plain_value, read_config_file
from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.hook_config import remember_unused
from wsgiserv.config.masking import mask, mask_text
from wsgiserv.config.names import BY_ALIAS, BY_OLD_NAME, meant_by
from wsgiserv.config.paste import check_file, has_loggers, split_uri
from wsgiserv.config.refusal import refusal, shown_value
from wsgiserv.config.settings import SETTINGS, Settings
from wsgiserv.config.sources import Sources, last_given, read_sources
from wsgiserv.config.values import TooLarge
from wsgiserv.config.worker_class import implied_by, known, patches_library, resolve
from wsgiserv.errors import ConfigError
from wsgiserv.library_first import LibraryFirst
from wsgiserv.safe_open import NO_GROUP, working_directory
from wsgiserv.stand_ins import server_name
from wsgiserv.wording import did_you_mean

_WORKER_CLASS_NAMES = ("worker_class", *SETTINGS["worker_class"].aliases)


class Loaded(NamedTuple):
    """A configuration, with its faults.

    Attributes:
        settings: the values; a setting with a fault has a lower source's value, or its default.
        sources: for every setting, the source of its value.
        notices: one line each, for the log at the start.
        config_path: the absolute path of the configuration file, for ``reload`` to watch; None without one.
        faults: all faults.
        faulty: the names of the settings with a fault; of all settings, when the configuration file cannot be run or an
            environment file cannot be read.
        variables: the variables of environment files, those included that are not used.
    """

    settings: Settings
    sources: dict[str, str]
    notices: list[str]
    config_path: str | None
    faults: list[ConfigError]
    faulty: set[str]
    variables: Sequence[FileVariable] = ()

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
    put_variables: Callable[[Mapping[str, str]], None] | None = None,
    program: Mapping[str, object] = MappingProxyType({}),
    reads_file: bool = True,
    given: Sequence[Given] = (),
    logging_file: str = "",
) -> Loaded:
    """Return the configuration and its faults.

    Args:
        argv: the arguments, without the program's name.
        environ: the environment of the start; to load again, the same one as the first time.
        directory: where relative paths start: the command's working directory. To load again after a
            ``chdir``, give the same one as the first time.
        before_gevent: called before a configuration file is run, if the workers are known to be gevent's by then: its
            imports are to be patched.
        known_chdir: tells whether a ``chdir`` has been served from before, at a reload or after an upgrade: then it
            may have been removed since.
        put_variables: called with the variables of environment files, before a configuration file is run; not called
            when one of these files has a fault.
        program: values of the program that runs the server in its own process; the configuration file goes before
            them.
        reads_file: whether there may be a configuration file.
        given: settings of another source, above all others.
        logging_file: a file that is `logconfig` where it configures loggers and nothing else does.
    """
    directory = directory or start_directory(environ)
    loader = _Loader(directory, before_gevent, known_chdir)
    read_before = dict(last_read)
    last_read.clear()
    sources = read_sources(argv, environ, directory)
    sources = sources._replace(arguments=[*sources.arguments, *given])
    environment = sources.environment
    loader.faults += sources.faults
    loader.take_own_variables(environment)
    loader.take_all(program, "the program")
    if not sources.is_whole:
        # What is missing may be any variable, of the configuration file's code, too.
        loader.faulty.update(SETTINGS)
    else:
        if put_variables is not None:
            put_variables({name: each.value for name, each in environment.files.items()})
        if reads_file:
            loader.run_config_file(sources)
    loader.take_arguments(sources)
    loader.take_script_name(environment)
    loader.take_platform_variables(environment)
    loader.take_loggers(logging_file)
    if loader.faults:
        # At a reload the configuration before goes on, and its files are watched as before.
        last_read.update({**read_before, **last_read})
    return loader.finish()._replace(variables=sources.variables)


def with_values(loaded: Loaded, values: Mapping[str, object], source: str, directory: str) -> Loaded:
    """Return the configuration with other values, which go before its own.

    Args:
        loaded: the configuration.
        values: raw values of settings, ours and gunicorn's, by their names.
        source: where they come from, for messages.
        directory: where a relative ``chdir`` starts.
    """
    # Names that follow from others are made anew.
    derived = {"proc_name": "default_proc_name", "default_proc_name": "wsgi_app"}
    kept = {name: each for name, each in loaded.sources.items() if each not in ("default", derived.get(name))}
    loader = _Loader(directory, None, loaded.settings.chdir.__eq__)
    loader.values = {name: getattr(loaded.settings, name) for name in kept}
    loader.sources, loader.notices = kept, list(loaded.notices)
    loader.faults, loader.faulty = list(loaded.faults), set(loaded.faulty)
    loader.file_config = loaded.settings.config
    loader.take_all(values, source)
    return loader.finish()._replace(config_path=loaded.config_path)


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

    def take(self, name: str, raw: object, source: str, accepted: str = "") -> None:
        """Parse a value of one of our settings and note it; ``accepted`` as of `_refuse`."""
        setting = SETTINGS[name]
        try:
            value = setting.parse(raw)
        except Exception as error:  # also what the attributes of an odd object raise
            # Looking for the line parses the file: only for a message.
            is_from_file = self.file is not None and source == self.file.location
            written = f"{shown_value(raw)} ({self._place(name) if is_from_file else source})"
            if not (setting.clamped and isinstance(error, TooLarge)):
                self._refuse("WS1010", name, refusal(setting, raw, error), accepted, written)
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
        return f"{mask(self.values[name])!r} ({self.sources[name]})"

    def take_own_variables(self, environment: Environment) -> None:
        """Take the values of WSGISERV_<NAME>, and tell of such variables that are no setting's."""
        for variable, setting, text in own_variables(environment):
            source = f"{variable} {environment.place(variable)}"
            try:
                raw = raw_value(setting, text)
            except ValueError as error:
                written = f"{shown_value(text)} ({source})"
                self._refuse(
                    "WS1068", setting.name, f"cannot be read: {error}.", accepted_in_variable(setting), written
                )
            else:
                self.take(setting.name, raw, source, accepted_in_variable(setting))
        for variable, name in gunicorns_variables(environment):
            if not GUNICORN_ONLY[name].is_default(environment.text(variable)):
                self._ignore(variable, environment.place(variable), name)
        for variable, advice in unknown_variables(environment):
            self.note(
                f"WS1063 {variable} {environment.place(variable)} is no setting and is ignored. {advice}".rstrip()
            )

    def take_platform_variables(self, environment: Environment) -> None:
        """Take PORT and the like, which are defaults: for settings that nothing else gives."""
        for name, setting in SETTINGS.items():
            variable = setting.environment
            text = environment.text(variable) if variable else ""
            if not text or name == "root_path":  # see `take_script_name`
                continue
            raw, source = platform_variable(name, text), f"{variable} {environment.place(variable)}"
            if name not in self.values and name not in self.faulty:
                self.take(name, raw, source)
                continue
            # A platform sets them for whatever runs there: an unusable one must not stop who does not need it.
            try:
                value = setting.parse(raw)
            except Exception as error:
                used = f" Used: {self._written(name)}" if name in self.values else ""
                self.note(
                    f"WS1060 {source} is ignored: {name} = {shown_value(raw)} {refusal(setting, raw, error)}{used}"
                )
            else:
                if name not in self.values:
                    self._set(name, value, source)

    def take_all(self, values: Mapping[str, object], source: str) -> None:
        """Take values, those of gunicorn's settings too; None leaves a setting as it is."""
        for name, raw in values.items():
            known = BY_ALIAS.get(name, name)
            if known in SETTINGS and raw is not None:
                self.take(known, raw, source)
            elif known in GUNICORN_ONLY and not GUNICORN_ONLY[known].is_default(raw):
                self._ignore(name, source, name)

    def take_script_name(self, environment: Environment) -> None:
        """Take SCRIPT_NAME for `root_path`, unless that is set: gunicorn's way to mount an application."""
        if "root_path" in self.values:
            return
        of_application = dict(pair.split("=", 1) for pair in self.values.get("raw_env", ()))
        is_raw = "SCRIPT_NAME" in of_application
        name = of_application["SCRIPT_NAME"] if is_raw else environment.text("SCRIPT_NAME")
        if name:
            source = f"SCRIPT_NAME {'in raw_env' if is_raw else environment.place('SCRIPT_NAME')}"
            self.take("root_path", name, source)
            if "root_path_outside" not in self.values:
                self._set("root_path_outside", "refuse", source)

    def take_arguments(self, sources: Sources) -> None:
        """Take the values of flags."""
        for name, raw, flag, where in sources.arguments:
            if name in SETTINGS:
                self.take(name, raw, f"{flag} {where}" if flag else where)
            elif not GUNICORN_ONLY[name].is_default(raw):
                self.unused[name] = raw
                self._ignore(flag, where, name)
        if any(given.where.startswith(f"in {GUNICORN_ARGUMENTS}") for given in sources.arguments):
            self.note(f"WS1032 using {GUNICORN_ARGUMENTS} from the environment; {OWN_ARGUMENTS} would go before it")

    def _ignore(self, written: str, place: str, name: str) -> None:
        self.note(f"WS1033 {written} ({place}) is ignored: {GUNICORN_ONLY[name].instead}")

    # ---- the configuration file ------------------------------------------------------------------------

    def run_config_file(self, sources: Sources) -> None:
        """Run the configuration file named last by arguments or a variable, or the default one if it is there."""
        named = last_given(sources.arguments, "config") or self.values.get("config")
        location = str(named) if named else find_config_file(self.directory)
        if location is None:
            return
        if not named and location.startswith("gunicorn"):
            found = os.path.join(self.directory, location)
            self.note(f"WS1034 using the configuration file {found}, since there is no wsgiserv.conf.py beside it")
        # gevent cannot patch names that a module has imported already, so it comes before the file's own imports.
        if self.before_gevent is not None:
            variable = last_own(sources.environment, "worker_class")
            otherwise = variable.text if variable is not None else None
            wanted = last_given(sources.arguments, "worker_class")
            wanted = wanted or plain_value(location, self.directory, _WORKER_CLASS_NAMES, otherwise)
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
        name_of_server = server_name()
        if name_of_server is not None and "server_header" not in self.file.names:
            self.take("server_header", name_of_server, self.file.location)

    def _take_from_file(self, file: ConfigFile, name: str, raw: object) -> None:
        known = BY_ALIAS.get(name, name)
        # A module imported under a setting's name ("import threads") is the user's own.
        if issubclass(type(raw), ModuleType):
            return
        if name in BY_OLD_NAME:
            # logfile = open(...), or a function of that name, is no log's path.
            if raw is not None and not callable(raw):
                self._take_old(file, name, BY_OLD_NAME[name], raw)
        elif known in SETTINGS:
            if SETTINGS[known].in_file and raw is not None:
                self.take(known, raw, file.location)
            elif known == "env_file" and issubclass(type(raw), str):
                # No fault: the file may have a variable of its own under this name, for a library such as dotenv.
                self.note(
                    f"WS1069 {name} ({self._place(name)}) is not used: environment files are read before the "
                    "configuration file. Name it by --env-file, or by WSGISERV_ENV_FILE in the environment"
                )
        elif name in GUNICORN_ONLY:
            ignored = GUNICORN_ONLY[name]
            # A function or class under such a name, `debug` or `paste`, is the file's own helper.
            is_own = callable(raw) and not ignored.function
            if not is_own and not ignored.is_default(raw):
                self.unused[name] = raw
                self._ignore(name, self._place(name), name)
        elif near := meant_by(name, raw):
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
        if values.get("syslog") and (problem := check_syslog(values)) is not None:
            self._refuse("WS1058", *problem)
        values["config"] = self.file_config
        self._resolve_class()
        # After the class: `auto` depends on it.
        self._size_workers()
        self._take_paste()
        # gunicorn's order; the process title and the hooks read `proc_name` alone.
        if values.get("wsgi_app") and "default_proc_name" not in values:
            self._set("default_proc_name", mask_text(values["wsgi_app"]), "wsgi_app")
        if not values.get("proc_name") and "default_proc_name" in values:
            self._set("proc_name", values["default_proc_name"], "default_proc_name")
        self._fill_group()
        if values.get("preload_in") == "master" and not values.get("preload_app"):
            self.note(f"WS1092 preload_in = {self._written('preload_in')} has no effect without preload_app")
        settings = Settings(**values, given=frozenset(sources))
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

    def _resolve_class(self) -> None:
        """Complete `worker_class`, and what it stands for besides."""
        values, sources = self.values, self.sources
        kind, threads = values.get("worker_class", "sync"), values.get("threads", 1)
        implied = implied_by(kind)
        if implied:
            source = self._written("worker_class")
            self._set("worker_class", resolve(kind, threads), source)
            for name in implied.keys() - values.keys():
                self._set(name, implied[name], f"worker_class = {source}")
        elif resolve(kind, threads) != kind:
            self._set("worker_class", resolve(kind, threads), f"threads = {threads} ({sources['threads']})")
        if values.get("wsgi_websocket") and values.get("worker_class", "sync") == "sync":
            unfit = "does not fit worker_class = 'sync': a WebSocket would hold the whole worker."
            self._refuse("WS1088", "wsgi_websocket", unfit, "True with worker_class = 'gevent' or 'threads'")

    def _take_paste(self) -> None:
        """Complete `paste`: the application is the file's, and so is the logging configuration, as with gunicorn."""
        values, uri = self.values, self.values.get("paste")
        if uri is None:
            return
        try:
            values["paste"] = uri = check_file(uri, self.directory)
        except ValueError as error:
            self._refuse("WS1094", "paste", f"is not accepted: {error}.")
            return
        source, path = self.sources["paste"], split_uri(uri)[0]
        if "wsgi_app" in values:
            self.note(f"WS1097 wsgi_app = {self._written('wsgi_app')} is not used: paste ({source}) goes before it")
        self._set("wsgi_app", uri, source)
        if "default_proc_name" not in values:
            self._set("default_proc_name", path, source)
        self.take_loggers(path)

    def take_loggers(self, path: str) -> None:
        """Take a PasteDeploy file for `logconfig`, if that is not set and the file configures loggers."""
        if path and "logconfig" not in self.values and has_loggers(path):
            self._set("logconfig", path, f"[loggers] in {path}")

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


def _is_patching(raw: object) -> bool:
    try:
        with LibraryFirst():  # imports the module of a class of ours, and gevent for its own alone
            return patches_library(SETTINGS["worker_class"].parse(raw))
    except (ValueError, TypeError):
        return False  # `take` will refuse it
