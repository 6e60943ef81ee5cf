"""Sends gunicorn's metrics to statsd: of requests, of log lines, and those of hooks and applications.

The wire format is statsd's, ``name:value|type``, one metric in a datagram, with Datadog's tags behind it.
"""

from __future__ import annotations

import logging
from _socket import SOCK_DGRAM
from _socket import socket as RawSocket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from wsgiserv.config.daemon_address import parse_statsd_host
from wsgiserv.config.settings import Settings
from wsgiserv.logs.senders import Datagrams, Target

# The keys of a log record's ``extra`` that make it a metric, and the types: gunicorn's names.
METRIC_VAR: Final = "metric"
VALUE_VAR: Final = "value"
MTYPE_VAR: Final = "mtype"
GAUGE_TYPE: Final = "gauge"
COUNTER_TYPE: Final = "counter"
HISTOGRAM_TYPE: Final = "histogram"
TIMER_TYPE: Final = "timer"

# Takes why metrics are lost.
Tell = Callable[[OSError], object]


class MetricNames:
    """The methods that make a metric of each type, with gunicorn's names."""

    prefix = ""

    def _sock_send(self, msg: str) -> None:
        raise NotImplementedError

    def gauge(self, name: str, value: float) -> None:
        """Send a value."""
        self._sock_send(f"{self.prefix}{name}:{value}|g")

    def increment(self, name: str, value: float, sampling_rate: float = 1.0) -> None:
        """Count up."""
        self._sock_send(f"{self.prefix}{name}:{value}|c|@{sampling_rate}")

    def decrement(self, name: str, value: float, sampling_rate: float = 1.0) -> None:
        """Count down."""
        self._sock_send(f"{self.prefix}{name}:-{value}|c|@{sampling_rate}")

    def timer(self, name: str, value: float) -> None:
        """Send a duration in milliseconds."""
        self._sock_send(f"{self.prefix}{name}:{value}|ms")

    def histogram(self, name: str, value: float) -> None:
        """Send a value of a distribution."""
        self._sock_send(f"{self.prefix}{name}:{value}|h")

    def send_extra(self, extra: object) -> None:
        """Send the metric that the ``extra`` of a log line has, if it has one."""
        if not isinstance(extra, Mapping):
            return
        name, value = extra.get(METRIC_VAR), extra.get(VALUE_VAR)
        if not name or value is None:
            return
        match extra.get(MTYPE_VAR):
            case "gauge":
                self.gauge(name, value)
            case "counter":
                self.increment(name, value)
            case "histogram":
                self.histogram(name, value)
            case "timer":
                self.timer(name, value)

    def count_request(self, status: int, duration_ms: float) -> None:
        """Send the three metrics of a request."""
        self.timer("gunicorn.request.duration", duration_ms)
        self.increment("gunicorn.requests", 1)
        self.increment(f"gunicorn.request.status.{int(status)}", 1)


class StatsdClient(MetricNames):
    """Sends metrics to one statsd. Never waits, never raises; any thread may call.

    Args:
        host: ``statsd_host``: its text, or gunicorn's path or pair.
        prefix: goes before each name, with a dot.
        tags: Datadog's tags for each metric.
        tell: called once per process, with the first fault.

    Attributes:
        prefix: with its dot.
        tags: as given.
    """

    def __init__(self, host: str | tuple[str, int], prefix: str, tags: str, tell: Tell | None = None) -> None:
        found = parse_statsd_host(host) if isinstance(host, str) and not host.startswith("/") else host
        path, address = (found, ("", 0)) if isinstance(found, str) else ("", found)
        # As gunicorn, which looks for IPv4 alone behind a name.
        self._sender = Datagrams(Target(SOCK_DGRAM, path, *address[:2], prefer_ipv4=True))
        self.prefix = f"{prefix.rstrip('.')}." if prefix.rstrip(".") else ""
        self.tags = tags
        self._tags = f"|#{tags}" if tags else ""
        self._tell = tell

    @property
    def sock(self) -> RawSocket | None:
        """The socket; None if the host has no address."""
        return self._sender.sock

    def send(self, msg: str) -> None:
        """Send a metric; what cannot be sent is lost."""
        fault = self._sender.send(f"{msg}{self._tags}".encode("ascii", "replace"))
        if fault is not None and self._tell is not None:
            tell, self._tell = self._tell, None  # before the call: its line is counted, too
            tell(fault)

    _sock_send = send

    def close(self) -> None:
        """Close the socket."""
        self._sender.close()

    def log_request(
        self, environ: dict[str, Any], status: int, headers: object, sent: int, duration_s: float, *_: object
    ) -> None:
        """Count one request; the arguments are the fields of an `Exchange`."""
        # gunicorn counts none without a request line either.
        if "REQUEST_METHOD" in environ:
            self.count_request(status, round(duration_s * 1e6) / 1000)


class _State:
    """The state of the last `open_statsd` in this process."""

    client: StatsdClient | None = None


_state: Final = _State()


def open_statsd(settings: Settings, tell: Tell) -> bool:
    """Send metrics as the settings say from now on; return whether any are sent. Called with the error log."""
    before, _state.client = _state.client, None
    # With a class of the user's that class has to send them, as with gunicorn.
    if settings.statsd_host is not None and settings.logger_class is None:
        _state.client = StatsdClient(settings.statsd_host, settings.statsd_prefix, settings.dogstatsd_tags, tell)
    if before is not None:
        before.close()
    return _state.client is not None


def close_statsd_in_child() -> None:
    """Close the socket in a child of the application; a metric opens another one."""
    if _state.client is not None:
        _state.client.close()


def request_counter() -> Callable[..., None] | None:
    """Return the function that counts a request, given the fields of its `Exchange`; None when nothing is sent."""
    return _state.client.log_request if _state.client is not None else None


class StatsdLog(MetricNames):
    """The methods of an error log whose lines are counted: goes before the logger's class among the bases.

    Like gunicorn's it counts each call from warning on, whatever the level of the log, and takes a metric from
    ``extra`` in the others.
    """

    @property
    def prefix(self) -> str:  # type: ignore[override]
        """What goes before each metric's name."""
        return _state.client.prefix if _state.client is not None else ""

    @property
    def dogstatsd_tags(self) -> str:
        """The tags of each metric."""
        return _state.client.tags if _state.client is not None else ""

    @property
    def sock(self) -> RawSocket | None:
        """The socket of the metrics."""
        return _state.client.sock if _state.client is not None else None

    def _sock_send(self, msg: str) -> None:
        if _state.client is not None:
            _state.client.send(msg)

    def critical(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log and count."""
        self._log_counted("critical", logging.CRITICAL, msg, args, kwargs)

    def error(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log and count."""
        # The server logs an exception of the application by its object, gunicorn by `exception`.
        raised = issubclass(type(kwargs.get("exc_info")), BaseException)
        self._log_counted("exception" if raised else "error", logging.ERROR, msg, args, kwargs)

    def warning(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log and count."""
        self._log_counted("warning", logging.WARNING, msg, args, kwargs)

    def exception(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log with the traceback of the exception that is being handled, and count."""
        kwargs.setdefault("exc_info", True)
        self._log_counted("exception", logging.ERROR, msg, args, kwargs)

    def info(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log, and send the metric of ``extra`` if there is one."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        self.log(logging.INFO, msg, *args, **kwargs)

    def debug(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log, and send the metric of ``extra`` if there is one."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        self.log(logging.DEBUG, msg, *args, **kwargs)

    def log(self, level: int | str, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log, and send the metric of ``extra`` if there is one; an empty message is a metric alone."""
        with suppress(Exception):  # of values that the user has made
            self.send_extra(kwargs.get("extra"))
        if msg:
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            super().log(level, msg, *args, **kwargs)  # type: ignore[misc]

    def _log_counted(self, name: str, level: int, msg: object, args: Any, kwargs: dict[str, Any]) -> None:
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 2
        super().log(level, msg, *args, **kwargs)  # type: ignore[misc]
        self.increment(f"gunicorn.log.{name}", 1)
