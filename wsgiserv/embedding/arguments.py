"""Reads the configuration of a program that serves an application: the arguments of `run` and `Server`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from wsgiserv.app.diagnostics import Target
from wsgiserv.app.loader import check_loaded, provide
from wsgiserv.config.argv import Given
from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.loader import Loaded, collect, start_directory
from wsgiserv.config.names import BY_ALIAS, meant_by
from wsgiserv.config.process_environment import ProcessEnvironment
from wsgiserv.config.refusal import shown_value
from wsgiserv.config.settings import SETTINGS
from wsgiserv.errors import ConfigError
from wsgiserv.user_code import own_attribute
from wsgiserv.wording import did_you_mean

# What they are called in other servers' functions.
_WORDS: Final = {"host": "bind", "port": "bind", "listen": "bind", "use_reloader": "reload", "processes": "workers"}
# They name the application in another way, or end a command in place of serving.
_COMMANDS: Final = frozenset({"wsgi_app", "paste", "check_config", "print_config"})


class Arguments:
    """The arguments of one call: reads the configuration that they give, at the start and for each reload.

    Args:
        app: an application, or its name, ``module:app``.
        settings: the settings by their names.
        function: the function that has been called, for messages: ``wsgiserv.run``.
        refused: settings that the function has no use for, with the reason.

    Attributes:
        is_object: whether the application is an object, which cannot be loaded again.
        environment: the environment of this process, for `wsgiserv.cli.serve`.
    """

    def __init__(
        self,
        app: object,
        settings: Mapping[str, object],
        function: str,
        refused: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.is_object = not issubclass(type(app), str)
        self.environment = ProcessEnvironment(os.environ)
        self._app: Any = app
        self._function = function
        self._refused = refused
        self._where = f"an argument of {function}"
        self._values = {name: value for name, value in settings.items() if value is not None}
        self._environ = dict(os.environ)
        # Of the start: a reload finds relative paths where that did.
        self._directory = start_directory(self._environ)

    def read(
        self,
        is_first: bool,
        known_chdir: Callable[[str], bool] | None,
        *,
        before_gevent: Callable[[], None] | None = None,
        program: Mapping[str, object] = MappingProxyType({}),
    ) -> Loaded:
        """Return the configuration, as `wsgiserv.cli.Read`.

        Args:
            is_first, known_chdir: as of `wsgiserv.cli.Read`.
            before_gevent, program: as of `wsgiserv.config.loader.collect`.

        An argument that is no setting is among its faults.

        Raises:
            ConfigError: a reload is asked for, and the application is an object.
            ApplicationError: the object is no application.
        """
        if self.is_object and not is_first:
            raise ConfigError(
                "WS1917 the application is an object, which cannot be loaded again: the workers serve on. Give its "
                f'name to reload it: {self._function}("module:app")'
            )
        name = self._provide() if self.is_object else self._app
        given, faults = self._given()
        loaded = collect(
            (),
            self._environ,
            self._directory,
            before_gevent if is_first else None,
            known_chdir,
            self.environment.put_files,
            program,
            reads_file="config" in self._values,
            given=[Given("wsgi_app", name, "", self._where), *given],
        )
        loaded.faults[:0] = faults
        settings = replace(loaded.settings, **{each: SETTINGS[each].default for each in self._refused})
        if settings.reload and self.is_object:
            settings = replace(settings, reload=False)
            loaded.notices.append(
                f"WS1918 reload ({loaded.sources['reload']}) has no effect: the application is an object, which cannot "
                f'be loaded again. Give its name: {self._function}("module:app", reload=True)'
            )
        return loaded._replace(settings=settings)

    def _provide(self) -> str:
        """Make the object known to the workers, and return its name there."""
        app = self._app
        kind = type(app)
        is_named = own_attribute(app, "__qualname__") is not None  # a function or a class
        module, name = (own_attribute(app if is_named else kind, each) for each in ("__module__", "__qualname__"))
        spec = f"{module}:{name}" if is_named else f"{module}.{name} object"
        check_loaded(Target(spec, str(module), str(name), None), app)
        provide(spec, lambda: app)
        return spec

    def _given(self) -> tuple[list[Given], list[ConfigError]]:
        """Return the arguments that are settings, and a fault for each other one."""
        given, faults = [], []
        for name, value in self._values.items():
            known = BY_ALIAS.get(name, name)
            reason = self._refused.get(known) or ("the application is the first argument" * (known in _COMMANDS))
            if reason:
                written = f"{name} = {shown_value(value)} ({self._where})"
                faults.append(ConfigError(f"WS1919 {written} is not accepted: {reason}. Accepted: other settings."))
            elif known in SETTINGS or known in GUNICORN_ONLY:
                given.append(Given(known, value, "", self._where))
            else:
                faults.append(self._unknown(name, value))
        return given, faults

    def _unknown(self, name: str, value: object) -> ConfigError:
        near = [_WORDS[name]] if name in _WORDS else meant_by(name, value)
        example = ', for example bind="127.0.0.1:8000"' if near == ["bind"] else ""
        advice = f" {did_you_mean(near)}" if near else ""
        return ConfigError(
            f"WS1920 {name} = {shown_value(value)} ({self._where}) is not a setting.{advice} Accepted: the settings "
            f"of a configuration file, by their names{example}."
        )
