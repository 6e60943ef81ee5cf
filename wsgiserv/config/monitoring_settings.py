"""Declares the settings of syslog and statsd, gunicorn's."""

from __future__ import annotations

from dataclasses import dataclass

from wsgiserv.config.daemon_address import FACILITIES, STATSD_ACCEPTED, SYSLOG_ACCEPTED, SYSLOG_DEFAULT, statsd_host
from wsgiserv.config.setting import Kind, Section
from wsgiserv.config.values import SWITCH, TEXT, TEXT_OR_NONE


@dataclass(frozen=True, kw_only=True, eq=False)
class MonitoringSettings:
    """The part of `Settings` about logs and metrics that go to other daemons."""

    # All off: what is not asked for sends nothing to anybody. The flags' names are gunicorn's.
    syslog: bool = Section.LOGGING(
        False,
        SWITCH,
        "Send both logs to syslog.",
        "--log-syslog",
        doc="""The error log goes there besides `errorlog`, the access log besides `accesslog`, or where that is
            not set. See [Syslog](logging.md#syslog).""",
    )
    syslog_addr: str = Section.LOGGING(
        SYSLOG_DEFAULT,
        TEXT,
        "The address of syslog: unix://PATH, udp://HOST:PORT or tcp://HOST:PORT.",
        "--log-syslog-to",
        metavar="ADDRESS",
        accepts=SYSLOG_ACCEPTED,
        doc="""Without `#dgram` a Unix socket may be of either type. The default is `udp://localhost:514` on Linux,
            `unix:///var/run/syslog` on macOS, `unix:///var/run/log` on FreeBSD. Checked when `syslog` is on.""",
        show_default="as of the system: udp://localhost:514 on Linux",
    )
    syslog_prefix: str | None = Section.LOGGING(
        None,
        TEXT_OR_NONE,
        "The program's name in syslog, behind 'gunicorn.'.",
        "--log-syslog-prefix",
        doc="The lines of `shop` begin with `gunicorn.shop.error:` and `gunicorn.shop.access:`, as gunicorn's do.",
        show_default="proc_name",
    )
    syslog_facility: str = Section.LOGGING(
        "user",
        TEXT,
        "The facility of syslog; for example 'local0'.",
        "--log-syslog-facility",
        accepts=", ".join(FACILITIES),
        doc="Checked when `syslog` is on.",
    )
    disable_redirect_access_to_syslog: bool = Section.LOGGING(
        False, SWITCH, "Send the error log alone to syslog.", doc="Without `syslog` it has no effect."
    )
    statsd_host: str | None = Section.LOGGING(
        None,
        Kind(statsd_host, STATSD_ACCEPTED, "ADDRESS"),
        "Send metrics to statsd at this address, by UDP or a Unix socket.",
        doc="""The metrics are gunicorn's, under the same names: see [statsd](logging.md#statsd). With a
            `logger_class` of your own that class sends them, or nothing does.""",
        show_default="none",
    )
    statsd_prefix: str = Section.LOGGING(
        "", TEXT, "A prefix of the metrics' names.", doc="A dot follows it: with `shop`, `shop.gunicorn.requests`."
    )
    dogstatsd_tags: str = Section.LOGGING(
        "",
        TEXT,
        "Tags in Datadog's notation for each metric; for example 'env:live,service:shop'.",
        metavar="TAGS",
        accepts="tags separated by commas",
    )
    enable_backlog_metric: bool = Section.LOGGING(
        False,
        SWITCH,
        "Also send how many connections wait to be accepted, once a second.",
        doc="As `gunicorn.backlog`, of TCP and Unix sockets. Linux only.",
    )
