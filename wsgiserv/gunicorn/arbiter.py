"""`Arbiter`: serves a program's application, by wsgiserv's master."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from wsgiserv import cli
from wsgiserv.errors import ExitStatus
from wsgiserv.gunicorn.errors import HaltServer


class Arbiter:
    """The server of an application object.

    It is not the master: the ``server`` argument of hooks is. A subclass can override `run` alone.

    Args:
        app: the application, a `BaseApplication`.
    """

    WORKER_BOOT_ERROR = int(ExitStatus.BOOT)
    APP_LOAD_ERROR = int(ExitStatus.APPLICATION)

    def __init__(self, app: Any) -> None:
        self.app = app
        self.cfg = app.cfg
        own = {name for each in type(self).__mro__[: -len(Arbiter.__mro__)] for name in vars(each)}
        replaced = sorted(name for name in own if not name.startswith("_") and name != "run")
        if replaced:
            raise RuntimeError(
                f"{type(self).__qualname__} replaces {', '.join(replaced)} of gunicorn's Arbiter, and wsgiserv has its "
                "own master: use hooks in its place (docs/embedding-gunicorn.md)"
            )

    def run(self) -> NoReturn:
        """Serve until told to stop, and exit the process."""
        try:
            status = cli.run_program(self.app._read, self.app._environment)
        except HaltServer as halt:
            print(f"wsgiserv: error: {halt.reason}", file=sys.stderr)
            status = halt.exit_status
        sys.exit(status)
