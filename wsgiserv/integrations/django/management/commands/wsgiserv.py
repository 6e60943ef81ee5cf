"""``manage.py wsgiserv``: serves the project as ``runserver`` does, by this server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management.base import CommandError
from django.db import connections

from wsgiserv import __version__
from wsgiserv.config.present import default_text
from wsgiserv.config.setting import Section
from wsgiserv.errors import ConfigError
from wsgiserv.integrations import command
from wsgiserv.integrations.django.request_lines import with_request_lines

if apps.is_installed("django.contrib.staticfiles"):
    from django.contrib.staticfiles.management.commands.runserver import Command as RunserverCommand
else:
    from django.core.management.commands.runserver import Command as RunserverCommand


class Command(RunserverCommand):  # type: ignore[misc]
    """The command. Arguments, checks and the handler of static files are those of the installed runserver."""

    help = (
        "Serves the project with wsgiserv, as runserver does: reloads changed code and serves static files with DEBUG, "
        "and logs requests. All flags of wsgiserv are accepted; with DEBUG the defaults are one worker, the class "
        "threads and no timeout. A configuration file is read only with --config."
    )

    def add_arguments(self, parser: Any) -> None:
        """Add runserver's arguments, and the flags of the server by their topics."""
        super().add_arguments(parser)
        taken = set(parser._option_string_actions)
        groups: dict[Section, Any] = {}
        for setting in command.flag_settings():
            flags = [flag for flag in (*setting.flags, *setting.hidden_flags) if flag not in taken]
            if not flags:  # --pythonpath is Django's, and means the same
                continue
            if setting.section not in groups:
                groups[setting.section] = parser.add_argument_group(f"server: {setting.section}".lower())
            add = groups[setting.section].add_argument
            text = f"{setting.help} [{default_text(setting)}]".replace("%", "%%")
            more: dict[str, Any] = {"action": _Take, "dest": f"server_{setting.name}", "default": argparse.SUPPRESS}
            if setting.kind.arity == "none":
                add(*flags, nargs=0, const=True, help=text, **more)
                off = [flag for flag in setting.off_flags if flag not in taken]
                add(*off, nargs=0, const=False, help=argparse.SUPPRESS, **more)
            else:
                nargs = "?" if setting.kind.arity == "optional" else None
                add(*flags, nargs=nargs, const=True, help=text, metavar=setting.metavar.strip("[]"), **more)

    def run(self, **options: Any) -> None:
        """Become the server; in a worker, hand the application over. Called by runserver's `handle`."""
        if command.is_loading():
            self._hand_over(options)
        if not options["skip_checks"]:
            self.stdout.write("Performing system checks...\n\n")
            self.check(display_num_errors=True)
        self.check_migrations()
        _close_connections()
        try:
            command.serve("manage.py wsgiserv", self._defaults(options), self._flags(options), self._banner())
        except ConfigError as error:
            raise CommandError(str(error), returncode=2) from None

    def _hand_over(self, options: dict[str, Any]) -> None:
        try:
            # The first ones come from a process that has just performed them.
            if command.is_later():
                if not options["skip_checks"]:
                    self.check()
                self.check_migrations()
                _close_connections()
            handler = self.get_handler(**options)
        except CommandError as error:
            command.cannot_serve(str(error))
        application: Callable[..., Any] = with_request_lines(handler)
        command.hand_over(application)

    def _flags(self, options: dict[str, Any]) -> Iterator[str]:
        if options["addrport"] or self.use_ipv6:
            yield f"--bind={self._address()}"
        for setting in command.flag_settings():
            if (value := options.get(f"server_{setting.name}")) is not None:
                yield from command.as_flags(setting.name, value)
        if settings.DEBUG and options["use_reloader"]:
            for directory in _watched_directories():
                yield f"--reload-extra-file={directory}"
        if not options["use_reloader"]:
            yield "--no-reload"

    def _address(self) -> str:
        host = f"[{self.addr}]" if self._raw_ipv6 or ":" in self.addr else "0.0.0.0" if self.addr == "0" else self.addr
        return f"{host}:{self.port}"

    def _defaults(self, options: dict[str, Any]) -> dict[str, Any]:
        given = {name.removeprefix("server_") for name in options if name.startswith("server_")}
        values = command.developers_defaults(settings.DEBUG, options["use_threading"], given)
        return {"bind": [self._address()], **values}

    def _banner(self) -> str:
        kind = "development server" if settings.DEBUG else "server"
        return (
            f"{datetime.now().strftime('%B %d, %Y - %X')}\n"
            f"Django version {self.get_version()}, wsgiserv {__version__}, "
            f"using settings {settings.SETTINGS_MODULE!r}\n"
            f"Starting {kind} at {{url}}/\n"
            "Quit the server with CONTROL-C."
        )


class _Take(argparse.Action):
    """Notes the values of a flag: all of them for a repeatable one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from wsgiserv.config.settings import SETTINGS

        value = self.const if self.nargs == 0 else values
        if SETTINGS[self.dest.removeprefix("server_")].kind.arity == "many":
            value = [*getattr(namespace, self.dest, []), value]
        setattr(namespace, self.dest, value)


def _close_connections() -> None:
    for connection in connections.all():
        connection.close()


def _watched_directories() -> Iterator[str]:
    """Yield the directories of templates and translations: Django keeps both in memory."""
    from django.template.autoreload import get_template_directories
    from django.utils.autoreload import is_django_path

    locales = [*settings.LOCALE_PATHS, *(os.path.join(each.path, "locale") for each in apps.get_app_configs())]
    found = {str(path) for path in (*get_template_directories(), *locales)}
    yield from sorted(path for path in found if os.path.isdir(path) and not is_django_path(path))
