"""`Logger`, the base of logger classes: gunicorn's methods and attributes, over the standard library's logging."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import sys
import time
from _thread import allocate_lock
from binascii import a2b_base64
from collections.abc import Mapping
from datetime import timedelta
from socket import SOCK_DGRAM, SOCK_STREAM
from typing import Any, ClassVar

from wsgiserv.config import daemon_address
from wsgiserv.logs.error import reopen_files
from wsgiserv.logs.escape import escape
from wsgiserv.logs.plain import DATE_FORMAT, LINE_FORMAT
from wsgiserv.logs.syslog import SyslogHandler
from wsgiserv.logs.syslog import formatter as syslog_formatter

CONFIG_DEFAULTS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {
        f"gunicorn.{log}": {"level": "INFO", "handlers": [handler], "propagate": True, "qualname": f"gunicorn.{log}"}
        for log, handler in (("error", "error_console"), ("access", "console"))
    },
    "handlers": {
        name: {"class": "logging.StreamHandler", "formatter": "generic", "stream": f"ext://sys.{stream}"}
        for name, stream in (("console", "stdout"), ("error_console", "stderr"))
    },
    "formatters": {"generic": {"format": LINE_FORMAT, "datefmt": DATE_FORMAT, "class": "logging.Formatter"}},
}

SYSLOG_FACILITIES = {**daemon_address.FACILITIES}


def loggers() -> list[logging.Logger]:
    """Return all loggers of this process."""
    return [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]


class SafeAtoms(dict[str, Any]):
    r"""The atoms of a line, escaped: ``"`` becomes ``\"``, a control character ``\x0a``.

    An unknown atom is ``-``; ``{Header}i`` is found in any case.
    """

    def __init__(self, atoms: Mapping[str, Any]) -> None:
        super().__init__((key, escape(v.replace('"', '\\"')) if isinstance(v, str) else v) for key, v in atoms.items())

    def __getitem__(self, key: str) -> Any:
        return self.get(key.lower() if key.startswith("{") else key, "-")


def parse_syslog_address(addr: str) -> tuple[Any, Any]:
    """Return the socket type (None for either) and the address of ``syslog_addr``. Raises RuntimeError."""
    try:
        kind, path, address = daemon_address.parse_syslog_address(addr)
    except ValueError as error:
        raise RuntimeError(str(error)) from None
    return {"tcp": SOCK_STREAM, "unix": None}.get(kind, SOCK_DGRAM), path or address


class Logger:
    """The error log and the access log of a server.

    Args:
        cfg: the settings.

    Attributes:
        cfg: the settings.
        error_log, access_log: the loggers ``gunicorn.error`` and ``gunicorn.access``.
        error_handlers, access_handlers, logfile, lock: gunicorn's; not used.
    """

    LOG_LEVELS: ClassVar[dict[str, int]] = {
        "critical": logging.CRITICAL,
        "error": logging.ERROR,
        "warning": logging.WARNING,
        "info": logging.INFO,
        "debug": logging.DEBUG,
    }
    loglevel: int = logging.INFO
    error_fmt: str = LINE_FORMAT
    datefmt: str = DATE_FORMAT
    access_fmt: str = "%(message)s"
    syslog_fmt: str = "[%(process)d] %(message)s"
    atoms_wrapper_class: Any = SafeAtoms

    def __init__(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("gunicorn.error")
        self.access_log = logging.getLogger("gunicorn.access")
        self.error_log.propagate = self.access_log.propagate = False
        self.error_handlers: list[logging.Handler] = []
        self.access_handlers: list[logging.Handler] = []
        self.logfile: Any = None
        self.lock = allocate_lock()
        self.cfg = cfg
        self.setup(cfg)

    def setup(self, cfg: Any) -> None:
        """Set levels and handlers; called at the start, and again at each reload.

        Raises RuntimeError for a logging configuration that cannot be used.
        """
        self.cfg = cfg
        self.loglevel = self.LOG_LEVELS.get(cfg.loglevel.lower(), logging.INFO)
        self.error_log.setLevel(self.loglevel)
        self.access_log.setLevel(logging.INFO)
        for log in (self.error_log, self.access_log):
            for handler in list(log.handlers):
                if getattr(handler, "_gunicorn", False):
                    log.removeHandler(handler)
        self._set_handler(self.error_log, cfg.errorlog, logging.Formatter(self.error_fmt, self.datefmt))
        if cfg.accesslog is not None:
            self._set_handler(self.access_log, cfg.accesslog, logging.Formatter(self.access_fmt), sys.stdout)
        if cfg.syslog:
            self._set_syslog_handler(self.error_log, cfg, self.syslog_fmt, "error")
            if not cfg.disable_redirect_access_to_syslog:
                self._set_syslog_handler(self.access_log, cfg, self.syslog_fmt, "access")
        try:
            _apply_logconfig(cfg)
        except Exception as error:  # it runs the classes of the configuration
            raise RuntimeError(str(error)) from error

    # ---- the error log -----------------------------------------------------------------------------------

    def critical(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log a message of this level."""
        self.error_log.critical(msg, *args, **kwargs)

    def error(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log a message of this level."""
        self.error_log.error(msg, *args, **kwargs)

    def warning(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log a message of this level."""
        self.error_log.warning(msg, *args, **kwargs)

    def info(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log a message of this level."""
        self.error_log.info(msg, *args, **kwargs)

    def debug(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log a message of this level."""
        self.error_log.debug(msg, *args, **kwargs)

    def exception(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log an error with the traceback of the exception that is being handled."""
        self.error_log.exception(msg, *args, **kwargs)

    def log(self, lvl: int | str, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log a message of a level, given by name or number."""
        level = self.LOG_LEVELS.get(lvl.lower(), logging.INFO) if isinstance(lvl, str) else lvl
        self.error_log.log(level, msg, *args, **kwargs)

    # ---- the access log ----------------------------------------------------------------------------------

    @property
    def access_log_enabled(self) -> bool:
        """Whether requests are logged."""
        cfg = self.cfg
        by_syslog = cfg.syslog and not cfg.disable_redirect_access_to_syslog
        return bool(cfg.accesslog or cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json or by_syslog)

    def atoms(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> dict[str, Any]:
        """Return the atoms of a request, unescaped."""
        status = resp.status.split(None, 1)[0] if isinstance(resp.status, str) else resp.status
        sent = getattr(resp, "sent", None)
        micros = request_time // timedelta(microseconds=1)
        atoms = {
            "h": environ.get("REMOTE_ADDR") or "-",
            "l": "-",
            "u": self._get_user(environ) or "-",
            "t": self.now(),
            "r": f"{environ['REQUEST_METHOD']} {environ['RAW_URI']} {environ['SERVER_PROTOCOL']}",
            "s": status,
            "m": environ.get("REQUEST_METHOD"),
            "U": environ.get("PATH_INFO"),
            "q": environ.get("QUERY_STRING"),
            "H": environ.get("SERVER_PROTOCOL"),
            "b": "-" if sent is None else str(sent),
            "B": sent,
            "f": environ.get("HTTP_REFERER", "-"),
            "a": environ.get("HTTP_USER_AGENT", "-"),
            "T": micros // 1_000_000,
            "M": micros // 1000,
            "D": micros,
            "L": "{}.{:06d}".format(*divmod(micros, 1_000_000)),
            "p": f"<{os.getpid()}>",
            "i": environ.get("wsgiserv.request_id", "-"),
            "aborted": "aborted" if getattr(resp, "aborted", False) else "-",
        }
        sources: list[tuple[str, Any]] = [("i", getattr(req, "headers", req)), ("o", resp.headers), ("e", environ)]
        for kind, pairs in sources:
            items = pairs.items() if hasattr(pairs, "items") else pairs
            atoms.update((f"{{{name.lower()}}}{kind}", value) for name, value in items)
        return atoms

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """Log a request.

        Args:
            resp: the response: status, headers, sent.
            req: the request: method, uri, headers.
            environ: its environ, as the application has left it.
            request_time: how long it took.
        """
        if self.access_log_enabled:
            atoms = self.atoms_wrapper_class(self.atoms(resp, req, environ, request_time))
            self.access_log.info(self.cfg.access_log_format, atoms)

    def now(self) -> str:
        """Return the time as the Common Log Format has it."""
        return time.strftime("[%d/%b/%Y:%H:%M:%S %z]")

    def _get_user(self, environ: dict[str, Any]) -> str | None:
        scheme, _, credentials = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            return a2b_base64(credentials.strip()).partition(b":")[0].decode()
        except ValueError as error:  # binascii.Error and UnicodeDecodeError are such
            self.debug("cannot read the user's name: %s", error)
            return None

    # ---- files -------------------------------------------------------------------------------------------

    def reopen_files(self) -> None:
        """Open the files of all handlers again under their names (USR1)."""
        reopen_files()

    def close_on_exec(self) -> None:
        """Do nothing: no descriptor of Python's reaches a program that is executed (PEP 446)."""

    def _get_gunicorn_handler(self, log: logging.Logger) -> logging.Handler | None:
        return next((each for each in log.handlers if getattr(each, "_gunicorn", False)), None)

    def _set_handler(self, log: logging.Logger, output: str | None, fmt: logging.Formatter, stream: Any = None) -> None:
        """Replace the handler of ``log`` by one for ``output``: a path, ``-`` for ``stream``, or None."""
        before = self._get_gunicorn_handler(log)
        if before is not None:
            log.handlers.remove(before)
        if output is None:
            return
        handler = logging.StreamHandler(stream) if output == "-" else logging.FileHandler(output)
        self._add(log, handler, fmt)

    def _set_syslog_handler(self, log: logging.Logger, cfg: Any, fmt: str, name: str) -> None:
        prefix = cfg.syslog_prefix or cfg.proc_name.replace(":", ".")
        facility = SYSLOG_FACILITIES.get(cfg.syslog_facility.lower())
        if facility is None:
            raise RuntimeError("unknown facility name")
        self._add(log, SyslogHandler(cfg.syslog_addr, facility), syslog_formatter(prefix, name, fmt))

    def _add(self, log: logging.Logger, handler: Any, fmt: logging.Formatter) -> None:
        handler.setFormatter(fmt)
        handler._gunicorn = True  # the mark of what `setup` has added
        log.addHandler(handler)


def _apply_logconfig(cfg: Any) -> None:
    if cfg.logconfig_dict:
        logging.config.dictConfig({**CONFIG_DEFAULTS, **cfg.logconfig_dict})
    elif cfg.logconfig_json:
        with open(cfg.logconfig_json, encoding="utf-8") as file:
            logging.config.dictConfig({**CONFIG_DEFAULTS, **json.load(file)})
    elif cfg.logconfig:
        if not os.path.exists(cfg.logconfig):
            raise RuntimeError(f"Error: log config {cfg.logconfig!r} not found")
        path = os.path.abspath(cfg.logconfig)
        defaults = {"__file__": path, "here": os.path.dirname(path)}
        logging.config.fileConfig(path, defaults=defaults, disable_existing_loggers=False)
