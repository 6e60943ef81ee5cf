"""`Statsd`, a logger that counts in statsd if ``cfg.statsd_host`` is set."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from typing import Any

from wsgiserv.gunicorn.glogging import Logger
from wsgiserv.logs.statsd import (
    COUNTER_TYPE,
    GAUGE_TYPE,
    HISTOGRAM_TYPE,
    METRIC_VAR,
    MTYPE_VAR,
    TIMER_TYPE,
    VALUE_VAR,
    MetricNames,
    StatsdClient,
)

__all__ = [
    "COUNTER_TYPE",
    "GAUGE_TYPE",
    "HISTOGRAM_TYPE",
    "METRIC_VAR",
    "MTYPE_VAR",
    "TIMER_TYPE",
    "VALUE_VAR",
    "Statsd",
]


class Statsd(MetricNames, Logger):
    """Logs, and sends the number and the duration of requests, and of log lines, to statsd.

    Attributes:
        prefix: before each name.
        sock: the socket; None without a host, or if it has no address.
        dogstatsd_tags: added to each metric.
    """

    # A line of `setup` comes before those of the object.
    _client: StatsdClient | None = None
    dogstatsd_tags: str | None = None

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.dogstatsd_tags = cfg.dogstatsd_tags
        if cfg.statsd_host:
            self._client = StatsdClient(cfg.statsd_host, cfg.statsd_prefix or "", "")
            self.prefix = self._client.prefix
        self.sock = self._client.sock if self._client is not None else None

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
        """Log, and send the metric of ``extra`` if there is one; an empty message is a metric alone."""
        self.send_extra(kwargs.get("extra"))
        if msg:
            super().log(lvl, msg, *args, **kwargs)

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """Log a request, and send its duration and status."""
        super().access(resp, req, environ, request_time)
        status = int(resp.status.split(None, 1)[0]) if isinstance(resp.status, str) else int(resp.status)
        self.count_request(status, request_time / timedelta(milliseconds=1))

    def _sock_send(self, msg: str) -> None:
        # Metrics are lost rather than waited for, or told of in the log that they count.
        sock, client = getattr(self, "sock", None), self._client
        text = f"{msg}|#{self.dogstatsd_tags}" if self.dogstatsd_tags else msg
        if client is not None and sock is client.sock:
            client.send(text)
        elif sock is not None:  # a subclass's
            with suppress(Exception):
                sock.send(text.encode("ascii", "replace"))
