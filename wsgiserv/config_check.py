"""Looks for all obstacles to a start (``--check-config``): without starting, listening or leaving a file.

Runs in a child process of the command.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from time import time
from types import SimpleNamespace
from typing import Any, NamedTuple

from wsgiserv.app.appearance import identify
from wsgiserv.app.loader import enter_directory
from wsgiserv.config.masking import mask_text
from wsgiserv.config.settings import Settings, speaks_tls
from wsgiserv.errors import ConfigError, WsgiservError
from wsgiserv.http.head import HeadParser
from wsgiserv.http.response import date_line
from wsgiserv.logs.access import access_log_path
from wsgiserv.logs.error import open_error_log, opening
from wsgiserv.logs.error_stream import ErrorStream
from wsgiserv.logs.files import check_log
from wsgiserv.master.pidfile import PidFile
from wsgiserv.master.recycling import too_large_at_boot
from wsgiserv.net.listener import Checked, check_listeners
from wsgiserv.places import check_control_socket, check_spool_dir, check_worker_tmp_dir
from wsgiserv.privileges import check_privileges, drop_privileges, owner_of, set_home
from wsgiserv.safe_open import absolute
from wsgiserv.wording import counted, kind_of
from wsgiserv.worker.mount import mounted_as
from wsgiserv.worker.preload import preload_application
from wsgiserv.worker.registry import resolve_worker_class
from wsgiserv.worker.serving import head_limits
from wsgiserv.worker.warmup import warm_up
from wsgiserv.wsgi.environ import base_environ
from wsgiserv.wsgi.response_context import ResponseContext

# In the order of the report, whichever is found first.
_SUBJECTS = ("configuration file", "application", "worker class", "addresses", "warm-up requests")


class Findings(NamedTuple):
    """The outcome of a check.

    Attributes:
        errors: they would stop the start; in the order of a start.
        warnings: lesser faults.
        notes: surprises.
        facts: the good parts: for each subject a description, or an empty text.
    """

    errors: list[WsgiservError]
    warnings: list[str]
    notes: list[str]
    facts: dict[str, str]


def examine(settings: Settings, config_path: str | None) -> Findings:
    """Check the configuration and load the application. Changes this process for good, and may not return.

    Args:
        settings: the configuration.
        config_path: the configuration file.
    """
    # In the order of a start: the exit status is that of the first fault which a start would meet.
    found = Findings([], [], [], dict.fromkeys(_SUBJECTS, ""))
    _try(found, lambda: enter_directory(settings.chdir))
    _try(found, lambda: _check_certificates(found, settings))
    log = _check_error_log(found, settings)
    _try(found, lambda: check_privileges(settings))
    _try(found, lambda: _check_pid_file(found, settings))
    # After the configuration's own checks, as in a start: the application and its imports read these.
    os.environ.update(dict(pair.split("=", 1) for pair in identify(settings)))
    listeners = _check_addresses(found, settings)
    _try(found, lambda: _check_access_log(settings))
    _try(found, lambda: check_spool_dir(settings))
    _try(found, lambda: check_worker_tmp_dir(settings))
    _try(found, lambda: check_control_socket(settings))
    found.facts["configuration file"] = config_path or settings.config or "none"
    # After a fault of the configuration the switch may fail as well, and would be told as a fault of its own.
    can_be_switched = not any(isinstance(error, ConfigError) for error in found.errors)
    application = _load(found, settings, log, can_be_switched)
    if application is not None:
        _try(found, lambda: _warm_up(found, settings, log, application, listeners))
        too_large = too_large_at_boot(os.getpid(), settings)
        if too_large:
            found.errors.append(ConfigError(too_large))
    return found


def _try(found: Findings, step: Callable[[], object]) -> bool:
    try:
        step()
    except WsgiservError as error:
        found.errors.append(error)
        return False
    return True


def _check_pid_file(found: Findings, settings: Settings) -> None:
    sentence = PidFile(settings.pidfile).check() if settings.pidfile else ""
    if sentence:
        found.notes.append(f"WS1062 {sentence} Only a reload of that server can take this configuration")


def _check_certificates(found: Findings, settings: Settings) -> None:
    if speaks_tls(settings):
        from wsgiserv.net.certificate_dates import date_warnings
        from wsgiserv.net.tls_context import make_context

        found.warnings.extend(date_warnings(settings))
        make_context(settings)  # with the hook, which only workers call


# ---- logs --------------------------------------------------------------------------------------------------


def _check_error_log(found: Findings, settings: Settings) -> logging.Logger:
    """Check `errorlog` and the logging configuration; return a logger for the rest of the check."""
    if settings.errorlog != "-":
        _try(found, lambda: _check_log("errorlog", settings.errorlog, settings))
    # A check sends nothing to other daemons.
    settings = replace(settings, syslog=False, statsd_host=None)
    try:
        return _apply_logconfig(settings)
    except ConfigError as error:
        found.errors.append(error)
        settings = replace(settings, logconfig=None, logconfig_dict={}, logconfig_json=None, logger_class=None)
        return open_error_log(replace(settings, errorlog="-"))


def _check_log(setting: str, path: str, settings: Settings) -> None:
    with opening(setting, path):
        check_log(absolute(path), owner_of(settings))


def _apply_logconfig(settings: Settings) -> logging.Logger:
    """Apply the logging configuration. Its files are not made, emptied or rotated: a server may write to them."""
    # All handlers that open a file do so by this method, those of an application's own classes as well.
    original = logging.FileHandler._open

    def open_nothing(handler: logging.FileHandler) -> Any:
        check_log(absolute(handler.baseFilename), owner_of(settings))
        handlers.append(handler)
        return tempfile.TemporaryFile("w")  # a regular file, as it would be

    handlers: list[logging.FileHandler] = []
    logging.FileHandler._open = open_nothing  # type: ignore[method-assign, assignment]
    # gunicorn's own class opens it for a try.
    access = settings.accesslog and "-" if settings.logger_class is not None else settings.accesslog
    try:
        return open_error_log(replace(settings, errorlog="-", accesslog=access))
    finally:
        logging.FileHandler._open = original  # type: ignore[method-assign]
        for handler in handlers:
            # A rotating one would rename the file of its name, not the temporary one.
            handler.emit = lambda record: None  # type: ignore[method-assign]


def _check_access_log(settings: Settings) -> None:
    path = settings.accesslog if settings.logger_class is not None else access_log_path(settings)
    if path is not None and path != "-":
        _check_log("accesslog", path, settings)


# ---- addresses -----------------------------------------------------------------------------------------------


def _check_addresses(found: Findings, settings: Settings) -> list[Checked]:
    good, errors = check_listeners(settings)
    found.errors.extend(errors)
    for checked in good:
        # Its owner may be the very server that is to be reloaded.
        if checked.in_use:
            found.notes.append(f"WS1061 a start would fail, a reload of the server there would not: {checked.in_use}")
    if not errors:
        found.facts["addresses"] = ", ".join(checked.url for checked in good)
    return good


# ---- the application -----------------------------------------------------------------------------------------


def _load(found: Findings, settings: Settings, log: logging.Logger, can_be_switched: bool) -> Callable[..., Any] | None:
    """Load the application with the rights of a start: as `user`, or before the switch with `preload_app`."""
    # What fails to load for want of rights must fail here, too.
    switched = settings.preload_app or (can_be_switched and _try(found, lambda: _become_worker(settings)))
    try:
        application = preload_application(settings, log, False)
        resolve_worker_class(settings.worker_class).check_patched("the application")
    except WsgiservError as error:
        found.errors.append(error)
        return None
    if settings.preload_app and can_be_switched:
        switched = _try(found, lambda: _become_worker(settings))
    kind = settings.worker_class if isinstance(settings.worker_class, str) else settings.worker_class.__name__
    found.facts["application"] = _described(settings, application)
    found.facts["worker class"] = f"{kind}, {counted(settings.workers, 'worker')}"
    return application if switched else None


def _become_worker(settings: Settings) -> None:
    set_home(settings, os.environ)
    drop_privileges(settings)


def _described(settings: Settings, application: object) -> str:
    spec = settings.wsgi_app or ""
    module = sys.modules.get(spec.partition(":")[0])
    place = getattr(module, "__file__", None) or "no file"
    return f"{mask_text(spec)}, {kind_of(application)} from {place}"


def _warm_up(
    found: Findings, settings: Settings, log: logging.Logger, application: Callable[..., Any], listeners: list[Checked]
) -> None:
    # Without an address there is no name that the requests could be sent to.
    if not settings.warmup or not listeners:
        return
    first = listeners[0]
    base = base_environ(
        server_name=first.server_name,
        server_port=first.server_port,
        url_scheme="https" if speaks_tls(settings) else "http",
        errors=ErrorStream(log),
        multithread=resolve_worker_class(settings.worker_class).multithread,
        multiprocess=(settings.workers_max or settings.workers) > 1,
    )
    # The parts of a `ServingContext` for warm-up requests: the real one belongs to a worker, with its slot and pipe.
    context: Any = SimpleNamespace(
        app=mounted_as(settings, application, log),
        gateway=ResponseContext(log, date_line(time()), settings.sendfile),
        log=log,
        parser=HeadParser(head_limits(settings)),
        request_ids=map(f"check-{os.getpid()}-%016x".__mod__, count(1)),
    )
    warm_up(context, settings.warmup, base)
    found.facts["warm-up requests"] = ", ".join(settings.warmup)
