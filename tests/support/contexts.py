"""Makes the values that connections share, without a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from wsgiserv.http.response import date_line
from wsgiserv.net.serving_context import Application, ServingContext, ServingSettings
from wsgiserv.scoreboard import Scoreboard, Slot
from wsgiserv.wsgi.response_context import ResponseContext
from wsgiserv.wsgi.run import run_app

_LOG = logging.getLogger("test.corpus")
_LOG.propagate = False
_LOG.addHandler(logging.NullHandler())
_SLOT = Scoreboard(1, 1).slots[0]


def serving(
    app: Callable[..., Any],
    *,
    call: Callable[..., BaseException | None] = run_app,
    log: logging.Logger = _LOG,
    access: Any = None,
    slot: Slot = _SLOT,
    **settings: Any,
) -> ServingContext:
    """Return what the connections of one worker share, with the settings' defaults but for ``settings``."""
    defaults: dict[str, Any] = {"body_limit": 1 << 30, "body_memory": 1 << 20, "spool_dir": None}
    return ServingContext(
        settings=ServingSettings(**{**defaults, **settings}),
        application=Application(app, call),
        gateway=ResponseContext(log, date_line(0)),
        slot=slot,
        access=access,
    )
