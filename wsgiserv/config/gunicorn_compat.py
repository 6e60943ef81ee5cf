"""Lists the settings of gunicorn that wsgiserv accepts and does not use, each with what to do instead."""

from __future__ import annotations

from typing import NamedTuple


class GunicornOnly(NamedTuple):
    """One setting of gunicorn, present or old, that is accepted and ignored.

    Attributes:
        name: its name in a configuration file.
        instead: what to do instead, or why nothing is needed: the notice's end.
        flags: its flags.
        switch: whether its flags have no value.
        defaults: the values that change nothing in gunicorn either; they get no notice.
        old: whether the present gunicorn does not have it.
        function: whether its value is a function; a function under another name is the user's own.
    """

    name: str
    instead: str
    flags: tuple[str, ...]
    switch: bool
    defaults: tuple[object, ...]
    old: bool
    function: bool

    def is_default(self, raw: object) -> bool:
        """Tell whether the value is gunicorn's own default, so that ignoring it changes nothing."""
        if raw is None:
            return True
        if not issubclass(type(raw), (str, bytes, int, float, list, tuple, dict)):
            return False  # an object of the user's, whose == may do anything
        if raw in ([], ()):
            return True
        return any(raw == value or (isinstance(raw, str) and raw == str(value)) for value in self.defaults)


def _only(
    instead: str,
    name: str,
    flags: str = "",
    *defaults: object,
    switch: bool = False,
    old: bool = False,
    function: bool = False,
) -> GunicornOnly:
    """Return an entry; ``flags`` are separated by spaces. Without ``defaults``: False for a switch, else None."""
    return GunicornOnly(
        name, instead, tuple(flags.split()), switch, defaults or (False if switch else None,), old, function
    )


_SYSLOG = "log to syslog through logconfig or logconfig_dict (logging.handlers.SysLogHandler)"
_STATSD = "statsd is not sent to; count from the access log (access_log_format = 'json')"
_PASTE = "PasteDeploy files are not read; name the application, for example 'module:make_app()'"
_STRICT = "such requests are always refused: they allow smuggling requests past a proxy"
_METHOD = "methods are read by RFC 9110: any token, in the case it was sent in"
_HTTP2 = "wsgiserv speaks HTTP/1.1; let a proxy in front speak HTTP/2"
_ASGI = "wsgiserv serves WSGI applications; use an ASGI server for this one"
_DIRTY = "there are no dirty workers; run long tasks in a queue such as Celery, or on threads"
_CONTROL = "not needed: the control socket is for the server's own user and root, with mode 0600"
_RENAMED = "gunicorn renamed it long ago and ignores it, too; name the hook {}"

_TABLE = (
    # Logging
    _only(
        "logger classes are gunicorn's own; use logconfig_dict or access_log_format",
        "logger_class",
        "--logger-class",
        "gunicorn.glogging.Logger",
        "simple",
    ),
    _only(_SYSLOG, "syslog", "--log-syslog", switch=True),
    _only(_SYSLOG, "syslog_addr", "--log-syslog-to", "udp://localhost:514"),
    _only(_SYSLOG, "syslog_prefix", "--log-syslog-prefix"),
    _only(_SYSLOG, "syslog_facility", "--log-syslog-facility", "user"),
    _only(
        "not needed: the access log is never sent to syslog",
        "disable_redirect_access_to_syslog",
        "--disable-redirect-access-to-syslog",
        switch=True,
    ),
    _only(
        "set errorlog, and capture_output for what the application prints",
        "enable_stdio_inheritance",
        "-R --enable-stdio-inheritance",
        switch=True,
    ),
    _only(_STATSD, "statsd_host", "--statsd-host"),
    _only(_STATSD, "statsd_prefix", "--statsd-prefix", ""),
    _only(_STATSD, "dogstatsd_tags", "--dogstatsd-tags", ""),
    _only(_STATSD, "enable_backlog_metric", "--enable-backlog-metric", switch=True),
    # Processes
    _only(
        "not needed: the heartbeat lives in shared memory, not in a file",
        "worker_tmp_dir",
        "--worker-tmp-dir",
    ),
    _only("to trace every line, run the application under python -m trace", "spew", "--spew", switch=True),
    _only(_PASTE, "paste", "--paste --paster"),
    _only(_PASTE, "raw_paste_global_conf", "--paste-global"),
    _only(_CONTROL, "control_socket_mode", "--control-socket-mode", 0o600, "0600", "0o600"),
    # Protocol
    _only(_STRICT, "permit_obsolete_folding", "--permit-obsolete-folding", switch=True),
    _only(_STRICT, "strip_header_spaces", "--strip-header-spaces", switch=True),
    _only(_METHOD, "permit_unconventional_http_method", "--permit-unconventional-http-method", switch=True),
    _only(
        "requests of other versions than HTTP/1.0 and HTTP/1.1 are always refused",
        "permit_unconventional_http_version",
        "--permit-unconventional-http-version",
        switch=True,
    ),
    _only(_METHOD, "casefold_http_method", "--casefold-http-method", switch=True),
    _only(
        "not needed: there is one parser, in Python, and it is fast",
        "http_parser",
        "--http-parser",
        "auto",
        "python",
    ),
    _only(_HTTP2, "http_protocols", "--http-protocols", "h1"),
    _only(_HTTP2, "http2_cleartext", "--http2-cleartext", "off", False),
    _only(_HTTP2, "http2_max_concurrent_streams", "--http2-max-concurrent-streams", 100),
    _only(_HTTP2, "http2_initial_window_size", "--http2-initial-window-size", 65535),
    _only(_HTTP2, "http2_max_frame_size", "--http2-max-frame-size", 16384),
    _only(_HTTP2, "http2_max_header_list_size", "--http2-max-header-list-size", 65536),
    # TLS; 2 is ssl.PROTOCOL_TLS
    _only(
        "gunicorn ignores it, too; TLS 1.2 and later are spoken; see the hook ssl_context",
        "ssl_version",
        "--ssl-version",
        2,
    ),
    _only(
        "not needed: a client that closes without a TLS goodbye is an ordinary disconnect",
        "suppress_ragged_eofs",
        "--suppress-ragged-eofs",
        True,
        switch=True,
    ),
    _only(
        "not needed: a handshake never holds a worker, whenever it happens",
        "do_handshake_on_connect",
        "--do-handshake-on-connect",
        switch=True,
    ),
    # ASGI and dirty workers
    _only(_ASGI, "asgi_loop", "--asgi-loop", "auto"),
    _only(_ASGI, "asgi_lifespan", "--asgi-lifespan", "auto"),
    _only(_ASGI, "asgi_disconnect_grace_period", "--asgi-disconnect-grace-period", 3),
    _only(_ASGI, "websocket_max_message_size", "--websocket-max-message-size", 16 * 1024 * 1024),
    _only(_DIRTY, "dirty_apps", "--dirty-app"),
    _only(_DIRTY, "dirty_workers", "--dirty-workers", 0),
    _only(_DIRTY, "dirty_timeout", "--dirty-timeout", 300),
    _only(_DIRTY, "dirty_threads", "--dirty-threads", 1),
    _only(_DIRTY, "dirty_graceful_timeout", "--dirty-graceful-timeout", 30),
    _only(_DIRTY, "on_dirty_starting", function=True),
    _only(_DIRTY, "dirty_post_fork", function=True),
    _only(_DIRTY, "dirty_worker_init", function=True),
    _only(_DIRTY, "dirty_worker_exit", function=True),
    # Old names, still found in files; the present gunicorn ignores them in silence.
    _only(
        "gunicorn ignores it, too; use reload = True or loglevel = 'debug' for development",
        "debug",
        "--debug",
        switch=True,
        old=True,
    ),
    _only(
        "gunicorn ignores it, too; for proxies see forwarded_headers and forwarded_allow_ips",
        "x_forwarded_for_header",
        old=True,
    ),
    _only(
        "gunicorn ignores it, too; set raw_env = ['DJANGO_SETTINGS_MODULE=...'] and wsgi_app",
        "django_settings",
        "--settings",
        old=True,
    ),
    _only("gunicorn ignores it, too; there is one master, remove the line", "arbiter", old=True),
    _only(_RENAMED.format("pre_fork"), "before_fork", old=True, function=True),
    _only(_RENAMED.format("post_fork"), "after_fork", old=True, function=True),
    _only(_RENAMED.format("pre_exec"), "before_exec", old=True, function=True),
)

GUNICORN_ONLY: dict[str, GunicornOnly] = {each.name: each for each in _TABLE}
