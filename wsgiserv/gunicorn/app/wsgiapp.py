"""`WSGIApplication`, the application that the command line names, and `run`, the command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from wsgiserv import cli
from wsgiserv.app.loader import load_application
from wsgiserv.gunicorn.app.base import Application
from wsgiserv.gunicorn.errors import ConfigError


class WSGIApplication(Application):
    """Serves the application ``module:app``.

    Attributes:
        app_uri: its name; a program may set it in place of the command line.
    """

    app_uri: str | None = None

    def init(self, parser: argparse.ArgumentParser, opts: argparse.Namespace, args: list[str]) -> Any:
        """Take the application's name from the command line."""
        self.app_uri = args[0] if args else None

    def load_config(self) -> None:
        """Read the command line, the environment and the configuration file. Raises ConfigError."""
        super().load_config()
        self.app_uri = self.app_uri or self.cfg.wsgi_app
        if self.app_uri is None:
            raise ConfigError("no application is named. Accepted: module:name, for example: hello:app")

    def load_wsgiapp(self) -> Callable[..., Any]:
        """Import and return the application."""
        assert self.app_uri is not None
        return load_application(self.app_uri)

    def load(self) -> Callable[..., Any]:
        """Import and return the application."""
        return self.load_wsgiapp()

    def _provide(self) -> str:
        # As the command would: messages and process titles say the name that the user has given.
        is_plain = type(self).load is WSGIApplication.load and type(self).load_wsgiapp is WSGIApplication.load_wsgiapp
        if is_plain and type(self).wsgi is WSGIApplication.wsgi and self.app_uri is not None:
            return self.app_uri
        return super()._provide()


def run(prog: str | None = None) -> NoReturn:
    """Run the command ``wsgiserv`` with the arguments of this process, and exit.

    Args:
        prog: not used: messages say wsgiserv.
    """
    sys.exit(cli.main())


if __name__ == "__main__":
    run()
