"""Gives advice about applications that were written for gunicorn: at a start, and under ``--check-config``."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from wsgiserv.app.server_checks import find_check, search_path
from wsgiserv.config.settings import Settings

if TYPE_CHECKING:
    from wsgiserv.config.loader import Loaded


def is_unnamed(loaded: Loaded) -> bool:
    """Tell whether nobody has chosen the server's name for the application: then `name_advice` may be of use."""
    named = any(pair.startswith("SERVER_SOFTWARE=") for pair in loaded.settings.raw_env)
    return loaded.sources["appear_as"] == "default" and not named


def name_advice(settings: Settings, longest_s: float = inf) -> str:
    """Return a line that proposes `appear_as` if the application looks for gunicorn, else an empty text.

    Args:
        settings: the configuration.
        longest_s: how long to look through its sources.
    """
    if settings.wsgi_app is None or settings.paste is not None:
        return ""
    found = find_check(settings.wsgi_app.partition(":")[0], search_path(settings), monotonic() + longest_s)
    if found is None:
        return ""
    return (
        f"WS1090 {found.path} line {found.line} looks for gunicorn ({found.text}) and does not find it: if the "
        "application does something else without it, set appear_as = 'gunicorn' (--appear-as gunicorn); "
        "appear_as = 'off' says that all is well, and ends this line"
    )


def advice_about(loaded: Loaded) -> Iterator[str]:
    """Yield a line for each thing that may be otherwise than under gunicorn, or than is meant."""
    # Only here: the module is imported at each start for the advice above.
    from wsgiserv.master.differences import differences, is_for_gunicorn

    settings = loaded.settings
    if is_unnamed(loaded) and (line := name_advice(settings)):
        yield line
    if settings.preload_app and not settings.reload and loaded.sources["preload_in"] == "default":
        yield (
            "WS1091 preload_app: the process that loads the application (the zygote) is a child of the master beside "
            "the workers. If a program counts the master's children, as Airflow 2 does for its web server, set "
            "preload_in = 'master'; preload_in = 'zygote' says that none does"
        )
    if line := _proxy_advice(settings):
        yield line
    if is_for_gunicorn(loaded):
        yield from differences(loaded)


def _proxy_advice(settings: Settings) -> str:
    """Return a line if anybody on the network can send forwarded headers to the application, else an empty text."""
    from wsgiserv.config.address import is_local

    if "forwarded_allow_ips" in settings.given or settings.protocol == "uwsgi":
        return ""
    address = next((each for each in settings.bind if not is_local(each)), None)
    if address is None:
        return ""
    return (
        "WS1048 forwarded_allow_ips is not set: X-Forwarded-* and the like of any client that can connect to "
        f"{address} reach the application, as with gunicorn. Set it to your proxy's address, or to '' if there is none"
    )
