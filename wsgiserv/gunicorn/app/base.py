"""`BaseApplication` and `Application`: a program subclasses one, and runs the server in its own process."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from wsgiserv import cli
from wsgiserv.app.loader import provide
from wsgiserv.config.argv import parse
from wsgiserv.config.loader import Loaded, collect, start_directory, with_values
from wsgiserv.config.process_environment import ProcessEnvironment
from wsgiserv.errors import ConfigError, ExitStatus, WsgiservError
from wsgiserv.gunicorn.arbiter import Arbiter
from wsgiserv.gunicorn.config import Config
from wsgiserv.process import leave_if_child

_ARGUMENT_VARIABLES = ("GUNICORN_CMD_ARGS", "WSGISERV_CMD_ARGS")


class BaseApplication:
    """A program's server: `load_config` sets the settings, `load` returns the WSGI application, `run` serves it.

    Args:
        usage, prog: as of `argparse.ArgumentParser`.

    Attributes:
        cfg: the configuration.
        callable: the WSGI application, once it is loaded in this process.
        usage, prog, logger: as in gunicorn.
    """

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        self.usage = usage
        self.prog = prog
        self.cfg: Any = None
        self.callable: Callable[..., Any] | None = None
        self.logger: Any = None
        # Of the start: a reload finds relative paths where that did.
        self._directory = start_directory(os.environ)
        self._environ = dict(os.environ)
        self._environment = ProcessEnvironment(os.environ)
        # Of the reading that is in progress, see `wsgiserv.cli.Read`.
        self._is_first = True
        self._known_chdir: Callable[[str], bool] | None = None
        self.do_load_config()

    # ---- what a program overrides ------------------------------------------------------------------------

    def init(self, parser: argparse.ArgumentParser, opts: argparse.Namespace, args: list[str]) -> Any:
        """Take the command line of an `Application`; return values of settings, or None."""
        raise NotImplementedError

    def load(self) -> Callable[..., Any]:
        """Return the WSGI application. Called in each worker, or once with `preload_app`."""
        raise NotImplementedError

    def load_config(self) -> None:
        """Set the settings by ``self.cfg.set(name, value)``. Called at the start and at each reload."""
        raise NotImplementedError

    # ---- what it calls -----------------------------------------------------------------------------------

    def do_load_config(self) -> None:
        """Make the configuration. Prints an error and exits with status 2 if that fails."""
        try:
            self.load_default_config()
            self.load_config()
            self.cfg.validate()
        except Exception as error:
            leave_if_child(error)
            lines = error.faults if isinstance(error, WsgiservError) else (str(error) or type(error).__name__,)
            for line in lines:
                print(f"wsgiserv: error: {line}", file=sys.stderr)
            sys.exit(ExitStatus.CONFIG)

    def load_default_config(self) -> None:
        """Make `cfg`, with the defaults."""
        self.cfg = Config(self.usage, prog=self.prog)

    def reload(self) -> None:
        """Make the configuration anew (SIGHUP)."""
        self.do_load_config()

    def wsgi(self) -> Callable[..., Any]:
        """Return the WSGI application, loaded once in a process."""
        if self.callable is None:
            self.callable = self.load()
        return self.callable

    def run(self) -> NoReturn:
        """Serve until told to stop, and exit; a worker's process exits here, too."""
        Arbiter(self).run()

    # ---- for the server ----------------------------------------------------------------------------------

    def _read(self, is_first: bool, known_chdir: Callable[[str], bool] | None) -> Loaded:
        """Return the configuration, as `wsgiserv.cli.Read`. Raises ConfigError."""
        if not is_first:
            self._read_again(known_chdir)
        loaded, given = self.cfg.given()
        if loaded is None:
            environ = {key: text for key, text in self._environ.items() if key not in _ARGUMENT_VARIABLES}
            put_files = self._environment.put_files
            loaded = collect(
                [], environ, self._directory, known_chdir=known_chdir, put_variables=put_files, reads_file=False
            )
        source = f"load_config of {type(self).__qualname__}"
        return with_values(loaded, {**given, "wsgi_app": self._provide()}, source, self._directory)

    def _read_again(self, known_chdir: Callable[[str], bool] | None) -> None:
        before = self.cfg
        self._is_first, self._known_chdir = False, known_chdir
        try:
            self.reload()
        except SystemExit as error:
            # It has printed why. The server goes on with the configuration that it has.
            self.cfg = before
            raise ConfigError(
                f"WS1084 load_config of {type(self).__qualname__} has exited with status {error.code}: see the "
                "standard error."
            ) from error

    def _provide(self) -> str:
        """Make the application known to the server, and return its name there."""
        kind = type(self)
        name = f"{kind.__module__}:{kind.__qualname__}.load()"
        provide(name, self.wsgi)
        return name


class Application(BaseApplication):
    """A program's server that takes the server's own command line, environment and configuration file.

    `init` may return values of settings, which all of these go before.
    """

    def load_config(self) -> None:
        """Read the command line, the environment and the configuration file."""
        from wsgiserv.preimport import import_server

        import_server()  # before the configuration file, which may replace functions that the server binds
        argv = sys.argv[1:]
        line = parse(argv)
        if line.wants is not None:
            sys.exit(cli.main([f"--{line.wants}"]))
        if line.faults:
            raise ConfigError.of(line.faults)
        opts = argparse.Namespace(**dict.fromkeys(self.cfg.settings))
        vars(opts).update((given.name, given.raw) for given in line.given)
        applications = [str(given.raw) for given in line.given if given.name == "wsgi_app"]
        opts.args = applications
        values: Mapping[str, object] = self.init(self.cfg.parser(), opts, applications) or {}
        before_gevent = cli.patch_for_gevent if self._is_first else None
        own = {name: each for name, each in self.cfg.given()[1].items() if name not in values}
        program = {name.lower(): value for name, value in {**own, **values}.items()}
        put_files = self._environment.put_files
        loaded = collect(argv, self._environ, self._directory, before_gevent, self._known_chdir, put_files, program)
        loaded.raise_faults()
        self.load_default_config()  # what `init` has set is in it
        self.cfg.show(loaded)

    def chdir(self) -> None:
        """Change to the directory `chdir`, and make it importable."""
        os.chdir(self.cfg.chdir)
        if self.cfg.chdir not in sys.path:
            sys.path.insert(0, self.cfg.chdir)
