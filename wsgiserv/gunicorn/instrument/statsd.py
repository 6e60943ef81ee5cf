"""`Statsd`, a logger that counts in statsd if ``cfg.statsd_host`` is set."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from socket import AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM, socket
from typing import Any

from wsgiserv.gunicorn.glogging import Logger
from wsgiserv.gunicorn.util import is_ipv6, parse_address

METRIC_VAR = "metric"
VALUE_VAR = "value"
MTYPE_VAR = "mtype"
GAUGE_TYPE = "gauge"
COUNTER_TYPE = "counter"
HISTOGRAM_TYPE = "histogram"
TIMER_TYPE = "timer"


class Statsd(Logger):
    """Logs, and sends the number and the duration of requests, and of log lines, to statsd over UDP.

    Attributes:
        prefix: before each name.
        sock: the socket; None without a host.
        dogstatsd_tags: added to each metric.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        prefix = (cfg.statsd_prefix or "").rstrip(".")
        self.prefix = prefix and f"{prefix}."
        self.dogstatsd_tags = cfg.dogstatsd_tags
        self.sock = _connect(cfg.statsd_host)

    def critical(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log and count."""
        super().critical(msg, *args, **kwargs)
        self.increment("gunicorn.log.critical", 1)

    def error(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log and count."""
        super().error(msg, *args, **kwargs)
        self.increment("gunicorn.log.error", 1)

    def warning(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log and count."""
        super().warning(msg, *args, **kwargs)
        self.increment("gunicorn.log.warning", 1)

    def exception(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log and count."""
        super().exception(msg, *args, **kwargs)
        self.increment("gunicorn.log.exception", 1)

    def info(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log, and send the metric of ``extra`` if there is one."""
        self.log(logging.INFO, msg, *args, **kwargs)

    def debug(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log, and send the metric of ``extra`` if there is one."""
        self.log(logging.DEBUG, msg, *args, **kwargs)

    def log(self, lvl: int | str, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log, and send the metric of ``extra`` if there is one."""
        extra = kwargs.get("extra") or {}
        sends = {
            GAUGE_TYPE: self.gauge,
            COUNTER_TYPE: self.increment,
            HISTOGRAM_TYPE: self.histogram,
            TIMER_TYPE: self.timer,
        }
        send = sends.get(str(extra.get(MTYPE_VAR)))
        if send is not None and extra.get(METRIC_VAR) and extra.get(VALUE_VAR) is not None:
            send(extra[METRIC_VAR], extra[VALUE_VAR])
        if msg:
            super().log(lvl, msg, *args, **kwargs)

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """Log a request, and send its duration and status."""
        super().access(resp, req, environ, request_time)
        status = int(resp.status.split(None, 1)[0]) if isinstance(resp.status, str) else int(resp.status)
        self.timer("gunicorn.request.duration", request_time / timedelta(milliseconds=1))
        self.increment("gunicorn.requests", 1)
        self.increment(f"gunicorn.request.status.{status}", 1)

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

    def _sock_send(self, msg: str) -> None:
        # Metrics are lost rather than waited for, or told of in the log that they count.
        sock = getattr(self, "sock", None)  # a line of `setup` comes before it
        if sock is not None:
            tags = f"|#{self.dogstatsd_tags}" if self.dogstatsd_tags else ""
            with suppress(OSError):
                sock.send(f"{msg}{tags}".encode("ascii", "replace"))


def _connect(host: Any) -> socket | None:
    """Return a socket for ``statsd_host``, a text or gunicorn's pair; None without a host, or if it has no address."""
    if isinstance(host, str) and host and not host.startswith("/"):
        host = parse_address(host, "8125")
    if not host:
        return None
    is_path = isinstance(host, str)
    family = AF_UNIX if is_path else AF_INET6 if is_ipv6(host[0]) else AF_INET
    try:
        sock = socket(family, SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(host)
    except OSError:
        return None
    return sock
