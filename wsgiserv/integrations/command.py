"""Runs the server for a command of a framework: ``manage.py wsgiserv``, ``flask serve``.

By the time of the command its process has imported the framework, and maybe the whole project: a worker forked from it
would not load changed code. So the process becomes a fresh master (execve(2)). Each worker runs the program again as it
was started, up to the command, which hands the application over.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from wsgiserv.config.setting import Setting
from wsgiserv.config.settings import SETTINGS, Settings
from wsgiserv.errors import ApplicationError, ConfigError

if TYPE_CHECKING:
    from wsgiserv.config.loader import Loaded

# The program's path comes first: the server may be importable by that alone. As `wsgiserv.__main__`, an interrupt ends
# the process at once until the master has its handlers.
_CODE: Final = """\
import _signal, sys
_signal.signal(_signal.SIGINT, _signal.SIG_DFL)
sys.path[:] = {path}
from wsgiserv.library_first import LibraryFirst
with LibraryFirst():
    from wsgiserv.integrations.command import main
sys.exit(main())
"""
# What a command does not take: the application is the framework's.
_LEFT_OUT: Final = frozenset({"wsgi_app", "paste", "raw_paste_global_conf"})
# Informative lines that a developer waits for; the others are for operators.
_KEPT_LINES: Final = frozenset({"%s has changed: reloading"})


class _HandedOver(BaseException):
    """Leaves the program at its command. Not an Exception: programs catch these around their commands."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self.application = application


class _Failed(BaseException):
    """Leaves the program at its command, which cannot serve."""


@dataclass(frozen=True)
class Plan:
    """What the master of a command is to do.

    Attributes:
        name: the application's name, in messages and process titles.
        main: the path of the program, or the name of its module.
        is_module: whether it was started by ``python -m``.
        argv: its arguments, as of ``sys.argv``.
        defaults: values of settings that nothing else sets.
        banner: printed when the server is ready; ``{url}`` stands for its address.
    """

    name: str
    main: str
    is_module: bool
    argv: Sequence[str]
    defaults: Mapping[str, Any]
    banner: str


@dataclass
class _Process:
    """The state of this process, inherited by workers.

    Attributes:
        settings: the settings of the master.
        is_loading: the program runs here for its application.
        is_up: all workers of the start have been ready.
    """

    settings: Settings | None = None
    is_loading: bool = False
    is_up: bool = False


_process: Final = _Process()


# ---- for the command ------------------------------------------------------------------------------------------


def is_loading() -> bool:
    """Tell whether the command runs in a worker, which wants its application."""
    return _process.is_loading


def is_later() -> bool:
    """Tell whether this worker was started after the server was up, for changed code as a rule."""
    return _process.is_up


def server_settings() -> Settings:
    """Return the server's settings, in a worker."""
    assert _process.settings is not None
    return _process.settings


def hand_over(application: Callable[..., Any]) -> NoReturn:
    """Leave the program, in a worker, with its application."""
    raise _HandedOver(application)


def cannot_serve(reason: str) -> NoReturn:
    """Leave the program, in a worker: it has no application for that reason."""
    raise _Failed(reason)


def serve(name: str, defaults: Mapping[str, Any], flags: Iterable[str], banner: str) -> NoReturn:
    """Become the master of a server whose workers run this program again.

    Args:
        name, defaults, banner: as of `Plan`.
        flags: the flags of the command ``wsgiserv``.

    Raises:
        ConfigError: the program cannot be run again.
    """
    main, is_module = _this_program()
    plan = Plan(name, main, is_module, sys.argv, defaults, banner)
    code = _CODE.format(path=[str(entry) for entry in sys.path])
    argv = [sys.executable, *_args_from_interpreter_flags(), "-c", code, json.dumps(asdict(plan)), *flags]
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # None, or closed
            stream.flush()
    os.execv(sys.executable, argv)


def _this_program() -> tuple[str, bool]:
    """Return the path of this program, or its module's name and True."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return spec.name, True
    path = getattr(main, "__file__", None)
    if path is None or not os.path.isfile(path):
        raise ConfigError(
            f"WS1970 the workers run the program again to load the application, and {sys.argv[0] or 'this program'!r} "
            "is no file. Accepted: a program in a file (manage.py, django-admin, flask), or python -m."
        )
    return os.path.abspath(path), False


# ---- flags ----------------------------------------------------------------------------------------------------


def flag_settings() -> Iterator[Setting]:
    """Yield the settings that a command takes as flags."""
    for name, setting in SETTINGS.items():
        if name not in _LEFT_OUT and any(flag.startswith("--") for flag in setting.flags):
            yield setting


def developers_defaults(is_debug: bool, is_threaded: bool, given: Collection[str]) -> dict[str, Any]:
    """Return the defaults of a developer's server, which differ from the server's own.

    Args:
        is_debug: whether the framework's debug mode is on: then code is reloaded.
        is_threaded: whether requests are served in threads.
        given: the settings that flags give.
    """
    values: dict[str, Any] = {}
    # A page asks for several files at once. What a flag or a file says of the class stays whole.
    if is_threaded and not {"worker_class", "threads", "config"} & {*given}:
        values.update(worker_class="threads", threads=8)
    if is_debug:
        # A debugger stops a request for as long as a person thinks.
        values.update(reload=True, timeout=0)
    return values


def as_flags(name: str, value: Any) -> list[str]:
    """Return a setting as the flags of a command line.

    Args:
        name: the setting.
        value: a text; a list of texts for a repeatable flag; True or False for a switch.
    """
    setting = SETTINGS[name]
    flag = next(each for each in setting.flags if each.startswith("--"))
    if value is True:
        return [flag]
    if value is False:
        return [setting.off_flags[0]]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [f"{flag}={each}" for each in values]


# ---- the master -----------------------------------------------------------------------------------------------


def main() -> int:
    """Run the server, in the fresh interpreter; return its exit status. Its arguments are the plan and flags."""
    from wsgiserv.app.loader import provide
    from wsgiserv.cli import run_command

    plan, argv = Plan(**json.loads(sys.argv[1])), sys.argv[2:]
    provide(plan.name, partial(_load, plan))
    return run_command(lambda old_master: _serve(plan, argv, old_master))


def _serve(plan: Plan, argv: Sequence[str], old_master: Any) -> int:
    from wsgiserv.cli import catch_signals, patch_for_gevent, serve
    from wsgiserv.preimport import import_server

    if old_master is None:
        catch_signals()
    import_server()
    from wsgiserv.config.argv import Given, parse
    from wsgiserv.config.loader import collect, start_directory
    from wsgiserv.config.process_environment import ProcessEnvironment

    environ = dict(os.environ)
    directory = start_directory(environ)
    environment = ProcessEnvironment(os.environ)
    # A file for production (bind, user) is not for a developer's server, unless it is asked for.
    reads_file = any(each.name == "config" for each in parse(argv).given)

    def read(is_first: bool, known_chdir: Callable[[str], bool] | None) -> Loaded:
        loaded = collect(
            argv,
            environ,
            directory,
            patch_for_gevent if is_first else None,
            known_chdir,
            environment.put_files,
            _unset(plan.defaults, environ),
            reads_file,
            [Given("wsgi_app", plan.name, "", "the command")],
        )
        if loaded.sources["loglevel"] == "default":
            logging.getLogger("wsgiserv.error").addFilter(_is_for_developers)
        _process.settings = loaded.settings
        return loaded

    return serve(read, environment, old_master, program=_program(plan.banner if old_master is None else ""))


def _unset(defaults: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the defaults that no variable of the environment sets."""
    from wsgiserv.config.environment import variables_of

    return {
        name: value
        for name, value in defaults.items()
        if not any(environ.get(variable) for variable in variables_of(SETTINGS[name]))
    }


def _is_for_developers(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.msg in _KEPT_LINES


def _program(banner: str) -> Any:
    from wsgiserv.master.program import Program

    class Announcing(Program):
        def is_ready(self, addresses: Sequence[tuple[str, Any]]) -> None:
            _process.is_up = True
            if banner:
                # At once, though the stream be unbuffered.
                sys.stdout.write(banner.replace("{url}", " and ".join(url for url, _ in addresses)) + "\n")
                sys.stdout.flush()

    return Announcing(lambda: None)


# ---- a worker -------------------------------------------------------------------------------------------------


def _load(plan: Plan) -> Callable[..., Any]:
    """Run the program again; return the application of its command."""
    _process.is_loading = True
    sys.argv[:] = plan.argv
    try:
        _run(plan)
    except _HandedOver as end:
        return end.application
    except _Failed as end:
        raise ApplicationError(str(end)) from None
    raise ApplicationError(
        f"{plan.main} has ended before its command {plan.name!r}. Expected: with the arguments {list(plan.argv[1:])} "
        "it comes to the same command each time."
    )


def _run(plan: Plan) -> None:
    # The module stays: functions and classes of a program in one file are looked up there.
    module: Any = ModuleType("__main__")
    if plan.is_module:
        spec = find_spec(plan.main)
        if spec is None or spec.loader is None:
            raise ApplicationError(f"the module {plan.main!r}, which this server was started from, is not there.")
        module.__spec__, module.__file__, module.__package__ = spec, spec.origin, spec.parent
        code = spec.loader.get_code(plan.main)  # type: ignore[attr-defined]
    else:
        module.__file__ = plan.main
        if (directory := os.path.dirname(plan.main)) not in sys.path:
            sys.path.insert(0, directory)
        with open(plan.main, "rb") as file:
            code = compile(file.read(), plan.main, "exec")
    sys.modules["__main__"] = module
    exec(code, vars(module))
