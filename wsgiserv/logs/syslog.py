"""Sends both logs to syslog, in gunicorn's format, without waiting for its daemon.

Nothing here is imported unless `syslog` is set, or a `logger_class` has been written for gunicorn.
"""

from __future__ import annotations

import errno
import logging
import logging.handlers
from _socket import SOCK_DGRAM, SOCK_STREAM
from os import getpid
from socket import SocketKind
from typing import Any, Final

from wsgiserv.config.daemon_address import FACILITIES, parse_syslog_address
from wsgiserv.config.hook_config import view_of
from wsgiserv.config.settings import Settings
from wsgiserv.logs.escape import escape_keeping_lines
from wsgiserv.logs.handlers import DaemonHandler
from wsgiserv.logs.output import PATIENCE_S
from wsgiserv.logs.plain import safe_repr
from wsgiserv.logs.senders import Datagrams, Sender, Stream, Target, connect_any
from wsgiserv.unpatched import RealRLock

# gunicorn's.
LINE_FORMAT: Final = "[%(process)d] %(message)s"
# How long the end of a process waits for a connection that takes no more.
_LAST_PATIENCE_S: Final = 0.5


class SyslogHandler(DaemonHandler, logging.handlers.SysLogHandler):
    """A handler of the standard library that neither waits nor raises, whatever becomes of the daemon.

    Args:
        where: the address, as in `syslog_addr`. Raises ValueError.
        facility: the facility's number.

    Attributes:
        where: as given.
    """

    # Of real threads: see the error log's handler.
    lock: Any = property(lambda self: self._own_lock, lambda self, value: None)

    def __init__(self, where: str, facility: int) -> None:
        self._own_lock = RealRLock()
        kind, path, address = parse_syslog_address(where)
        # Not the constructor of SysLogHandler, which connects, and raises for a host without an address.
        logging.Handler.__init__(self)
        self.where, self.facility, self.address = where, facility, path or address
        self.socktype = SocketKind(SOCK_STREAM if kind == "tcp" else SOCK_DGRAM)
        self.unixsocket = bool(path)
        self._is_told = False
        self._works = True
        self._pid = getpid()
        self._lost_before = self._told_lost = 0
        self._sender: Sender
        if kind == "tcp":
            self._sender = Stream(Target(SOCK_STREAM, "", *address))
        elif kind == "unix":
            self._sender = connect_any(path, PATIENCE_S)
        else:
            self._sender = Datagrams(Target(SOCK_DGRAM, path, *address), PATIENCE_S)

    @property
    def lost(self) -> int:
        """The number of messages lost in this process."""
        return self._sender.lost

    def createSocket(self) -> None:
        """Do nothing: the sender connects when there is something to send (the base's method)."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, or lose it."""
        try:
            text = self.format(record)
        except Exception as error:  # a message and arguments that do not fit, a __str__ that raises
            text = f"(a log message could not be formatted: {safe_repr(error)}) {safe_repr(record.msg)}"
        priority = self.encodePriority(self.facility, self.mapPriority(record.levelname))
        end = "\0" if self.append_nul else ""
        message = f"<{priority}>{self.ident}{escape_keeping_lines(text)}{end}".encode("utf-8", "backslashreplace")
        fault = self._sender.send(message)
        if fault is not None and fault.errno == errno.EPROTOTYPE:  # the daemon has come, with the other type
            before, self._sender = self._sender, connect_any(str(self.address), PATIENCE_S)
            self._sender.lost += before.lost - 1
            fault = self._sender.send(message)
        self._note(fault)

    def _note(self, fault: OSError | None) -> None:
        """Note how the last attempt has ended; tell the first fault."""
        self._works = fault is None
        if fault is not None and not self._is_told and self.tell is not None:
            self._is_told = True
            self.tell(self.where, fault, 0)

    def look(self) -> None:
        """Send what is kept; tell when the daemon takes lines again. Called once a second."""
        with self._own_lock:
            sender = self._sender
            if self._pid != getpid():  # the parent tells its losses itself
                self._pid = getpid()
                self._lost_before = self._told_lost = 0
            if sender.is_behind:
                self._note(sender.flush())
            # Not with the first line: a daemon that is too slow would have two lines told for each that is lost.
            is_well = self._works and sender.knows_arrival and not sender.is_behind and sender.lost == self._lost_before
            self._lost_before = sender.lost
            if self._is_told and is_well and self.tell is not None:
                self._is_told = False
                lost, self._told_lost = sender.lost - self._told_lost, sender.lost
                self.tell(self.where, None, lost)

    def close_in_child(self) -> None:
        """Close the socket in a child of the application; a record opens another one."""
        self._sender.close()

    def close(self) -> None:
        """Send what is kept, for a moment, and close the socket; a later record opens it again."""
        with self._own_lock:
            self._sender.flush(_LAST_PATIENCE_S)
            self._sender.close()
        logging.Handler.close(self)


def formatter(prefix: str, log: str, line_format: str = LINE_FORMAT) -> logging.Formatter:
    """Return the formatter of one log, ``error`` or ``access``: gunicorn's."""
    return logging.Formatter(f"gunicorn.{prefix}.{log}: {line_format}")


def add_syslog(settings: Settings, error_log: logging.Logger, access_log: logging.Logger) -> list[logging.Handler]:
    """Give the loggers handlers for syslog, as the settings say; return the handlers."""
    prefix = settings.syslog_prefix or view_of(settings).proc_name.replace(":", ".")
    added: list[logging.Handler] = []
    logs = {"error": error_log, "access": access_log}
    if settings.disable_redirect_access_to_syslog:
        del logs["access"]
    for name, log in logs.items():
        handler = SyslogHandler(settings.syslog_addr, FACILITIES[settings.syslog_facility.lower()])
        handler.setFormatter(formatter(prefix, name))
        log.addHandler(handler)
        added.append(handler)
    return added
