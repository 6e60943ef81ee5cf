"""Settings of gunicorn that wsgiserv accepts and does not use, each with what to do instead.

Owns: the table of such names, their flags and their defaults, for the present gunicorn and for old ones.
Must not know: our own settings' declarations, how a command line is read.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["FOREIGN", "Foreign"]


class Foreign(NamedTuple):
    """One setting of gunicorn that is accepted and ignored.

    Attributes:
        name: its name in a configuration file.
        instead: what to do instead, or why nothing is needed: the notice's end.
        flags: its flags.
        takes: what follows its flags: ``value`` or ``nothing``.
        defaults: the values that change nothing in gunicorn either, for which no notice is given.
        old: gunicorn itself no longer has it.
        function: its value is a function, which for other names means that the name is the user's own.
    """

    name: str
    instead: str
    flags: tuple[str, ...] = ()
    takes: Literal["value", "nothing"] = "value"
    defaults: tuple[object, ...] = (None,)
    old: bool = False
    function: bool = False

    def is_default(self, raw: object) -> bool:
        """Tell whether the value is gunicorn's own default, so that ignoring it changes nothing."""
        if raw is None:
            return True
        if not issubclass(type(raw), (str, bytes, int, float, list, tuple, dict)):
            return False  # an object of theirs, whose == may do anything
        if raw in ([], ()):
            return True
        return any(raw == value or (isinstance(raw, str) and raw == str(value)) for value in self.defaults)


_SYSLOG = "log to syslog through logconfig or logconfig_dict (logging.handlers.SysLogHandler)"
_STATSD = "statsd is not sent to; count from the access log (access_log_format = 'json')"
_PASTE = "PasteDeploy files are not read; name the application, for example 'module:make_app()'"
_STRICT = "such requests are always refused, because they let requests be smuggled past a proxy"
_METHOD = "methods are taken as RFC 9110 has them: any token, in the case it was sent in"
_HTTP2 = "wsgiserv speaks HTTP/1.1; let a proxy in front speak HTTP/2"
_ASGI = "wsgiserv serves WSGI applications; use an ASGI server for this one"
_DIRTY = "there are no dirty workers; run long tasks in a queue such as Celery, or on threads"
_CONTROL = "not needed: the control socket is for the server's own user and root, with mode 0600"
_RENAMED = "gunicorn renamed it long ago and ignores it, too; name the hook {}"

_TABLE = (
    # Logging
    Foreign(
        name="logger_class",
        flags=("--logger-class",),
        defaults=("gunicorn.glogging.Logger", "simple"),
        instead="logger classes are gunicorn's own; use logconfig_dict or access_log_format",
    ),
    Foreign(name="syslog", flags=("--log-syslog",), takes="nothing", defaults=(False,), instead=_SYSLOG),
    Foreign(
        name="syslog_addr", flags=("--log-syslog-to",), defaults=("udp://localhost:514",), instead=_SYSLOG
    ),
    Foreign(name="syslog_prefix", flags=("--log-syslog-prefix",), instead=_SYSLOG),
    Foreign(name="syslog_facility", flags=("--log-syslog-facility",), defaults=("user",), instead=_SYSLOG),
    Foreign(
        name="disable_redirect_access_to_syslog",
        flags=("--disable-redirect-access-to-syslog",),
        takes="nothing",
        defaults=(False,),
        instead="not needed: the access log is never sent to syslog",
    ),
    Foreign(
        name="enable_stdio_inheritance",
        flags=("-R", "--enable-stdio-inheritance"),
        takes="nothing",
        defaults=(False,),
        instead="set errorlog, and capture_output for what the application prints",
    ),
    Foreign(name="statsd_host", flags=("--statsd-host",), instead=_STATSD),
    Foreign(name="statsd_prefix", flags=("--statsd-prefix",), defaults=("",), instead=_STATSD),
    Foreign(name="dogstatsd_tags", flags=("--dogstatsd-tags",), defaults=("",), instead=_STATSD),
    Foreign(
        name="enable_backlog_metric",
        flags=("--enable-backlog-metric",),
        takes="nothing",
        defaults=(False,),
        instead=_STATSD,
    ),
    # Processes
    Foreign(
        name="worker_tmp_dir",
        flags=("--worker-tmp-dir",),
        instead="not needed: the heartbeat lives in shared memory, not in a file",
    ),
    Foreign(
        name="spew",
        flags=("--spew",),
        takes="nothing",
        defaults=(False,),
        instead="to trace every line, run the application under python -m trace",
    ),
    Foreign(name="paste", flags=("--paste", "--paster"), instead=_PASTE),
    Foreign(name="raw_paste_global_conf", flags=("--paste-global",), instead=_PASTE),
    Foreign(
        name="control_socket_mode",
        flags=("--control-socket-mode",),
        defaults=(0o600, "0600", "0o600"),
        instead=_CONTROL,
    ),
    # Protocol
    Foreign(
        name="permit_obsolete_folding",
        flags=("--permit-obsolete-folding",),
        takes="nothing",
        defaults=(False,),
        instead=_STRICT,
    ),
    Foreign(
        name="strip_header_spaces",
        flags=("--strip-header-spaces",),
        takes="nothing",
        defaults=(False,),
        instead=_STRICT,
    ),
    Foreign(
        name="permit_unconventional_http_method",
        flags=("--permit-unconventional-http-method",),
        takes="nothing",
        defaults=(False,),
        instead=_METHOD,
    ),
    Foreign(
        name="permit_unconventional_http_version",
        flags=("--permit-unconventional-http-version",),
        takes="nothing",
        defaults=(False,),
        instead="requests of other versions than HTTP/1.0 and HTTP/1.1 are always refused",
    ),
    Foreign(
        name="casefold_http_method",
        flags=("--casefold-http-method",),
        takes="nothing",
        defaults=(False,),
        instead=_METHOD,
    ),
    Foreign(
        name="http_parser",
        flags=("--http-parser",),
        defaults=("auto", "python"),
        instead="not needed: there is one parser, in Python, and it is fast",
    ),
    Foreign(name="http_protocols", flags=("--http-protocols",), defaults=("h1",), instead=_HTTP2),
    Foreign(name="http2_cleartext", flags=("--http2-cleartext",), defaults=("off", False), instead=_HTTP2),
    Foreign(
        name="http2_max_concurrent_streams",
        flags=("--http2-max-concurrent-streams",),
        defaults=(100,),
        instead=_HTTP2,
    ),
    Foreign(
        name="http2_initial_window_size",
        flags=("--http2-initial-window-size",),
        defaults=(65535,),
        instead=_HTTP2,
    ),
    Foreign(
        name="http2_max_frame_size", flags=("--http2-max-frame-size",), defaults=(16384,), instead=_HTTP2
    ),
    Foreign(
        name="http2_max_header_list_size",
        flags=("--http2-max-header-list-size",),
        defaults=(65536,),
        instead=_HTTP2,
    ),
    # TLS
    Foreign(
        name="ssl_version",
        flags=("--ssl-version",),
        defaults=(2,),  # ssl.PROTOCOL_TLS
        instead="gunicorn ignores it, too; TLS 1.2 and later are spoken; see the hook ssl_context",
    ),
    Foreign(
        name="suppress_ragged_eofs",
        flags=("--suppress-ragged-eofs",),
        takes="nothing",
        defaults=(True,),
        instead="not needed: a client that leaves without a word is an ordinary disconnect",
    ),
    Foreign(
        name="do_handshake_on_connect",
        flags=("--do-handshake-on-connect",),
        takes="nothing",
        defaults=(False,),
        instead="not needed: a handshake never holds a worker, whenever it happens",
    ),
    # ASGI and dirty workers
    Foreign(name="asgi_loop", flags=("--asgi-loop",), defaults=("auto",), instead=_ASGI),
    Foreign(name="asgi_lifespan", flags=("--asgi-lifespan",), defaults=("auto",), instead=_ASGI),
    Foreign(
        name="asgi_disconnect_grace_period",
        flags=("--asgi-disconnect-grace-period",),
        defaults=(3,),
        instead=_ASGI,
    ),
    Foreign(
        name="websocket_max_message_size",
        flags=("--websocket-max-message-size",),
        defaults=(16 * 1024 * 1024,),
        instead=_ASGI,
    ),
    Foreign(name="dirty_apps", flags=("--dirty-app",), instead=_DIRTY),
    Foreign(name="dirty_workers", flags=("--dirty-workers",), defaults=(0,), instead=_DIRTY),
    Foreign(name="dirty_timeout", flags=("--dirty-timeout",), defaults=(300,), instead=_DIRTY),
    Foreign(name="dirty_threads", flags=("--dirty-threads",), defaults=(1,), instead=_DIRTY),
    Foreign(
        name="dirty_graceful_timeout", flags=("--dirty-graceful-timeout",), defaults=(30,), instead=_DIRTY
    ),
    Foreign(name="on_dirty_starting", function=True, instead=_DIRTY),
    Foreign(name="dirty_post_fork", function=True, instead=_DIRTY),
    Foreign(name="dirty_worker_init", function=True, instead=_DIRTY),
    Foreign(name="dirty_worker_exit", function=True, instead=_DIRTY),
    # Names of old gunicorns, which are still found in files; the present one ignores them in silence.
    Foreign(
        name="debug",
        flags=("--debug",),
        takes="nothing",
        defaults=(False,),
        old=True,
        instead="gunicorn ignores it, too; use reload = True or loglevel = 'debug' for development",
    ),
    Foreign(
        name="x_forwarded_for_header",
        old=True,
        instead="gunicorn ignores it, too; for proxies see forwarded_headers and forwarded_allow_ips",
    ),
    Foreign(
        name="django_settings",
        flags=("--settings",),
        old=True,
        instead="gunicorn ignores it, too; set raw_env = ['DJANGO_SETTINGS_MODULE=...'] and wsgi_app",
    ),
    Foreign(
        name="arbiter", old=True, instead="gunicorn ignores it, too; there is one master, remove the line"
    ),
    Foreign(name="before_fork", old=True, function=True, instead=_RENAMED.format("pre_fork")),
    Foreign(name="after_fork", old=True, function=True, instead=_RENAMED.format("post_fork")),
    Foreign(name="before_exec", old=True, function=True, instead=_RENAMED.format("pre_exec")),
)

FOREIGN: dict[str, Foreign] = {foreign.name: foreign for foreign in _TABLE}
