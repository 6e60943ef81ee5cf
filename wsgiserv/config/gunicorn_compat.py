"""Lists gunicorn's settings without a use in wsgiserv: accepted, each with advice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ignored:
    """One setting of gunicorn, present or old: accepted and ignored.

    Attributes:
        instead: the advice, or the reason for none: the notice's end.
        name: its name in a configuration file.
        flag: its flags, separated by spaces; ``{}`` stands for the name, with dashes.
        defaults: the values without an effect in gunicorn either; they get no notice. None is one always.
        switch: whether its flags have no value; then False is a default unless others are given.
        old: whether the present gunicorn does not have it.
        function: whether its value is a function; a function under another name is the user's own.
    """

    instead: str
    name: str
    flag: str = "--{}"
    defaults: tuple[object, ...] = ()
    switch: bool = False
    old: bool = False
    function: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flags; a hook has none."""
        return () if self.function else tuple(self.flag.format(self.name.replace("_", "-")).split())

    def is_default(self, raw: object) -> bool:
        """Tell whether the value is gunicorn's own default: ignoring it changes nothing."""
        if raw is None:  # as in a configuration file: leaves the setting as it is
            return True
        # An object of the user's: its == may do anything.
        if not issubclass(type(raw), (str, bytes, int, float, list, tuple, dict)):
            return False
        if raw in ([], ()):  # gunicorn's default of each list
            return True
        # A flag's value is text: "100" is the default 100.
        defaults = self.defaults or (False,) * self.switch
        return any(raw == value or (isinstance(raw, str) and raw == str(value)) for value in defaults)


_STRICT = "such requests are always refused: they allow smuggling requests past a proxy"
_METHOD = "methods are read by RFC 9110: any token, in the case it was sent in"
_HTTP2 = "wsgiserv speaks HTTP/1.1; let a proxy in front speak HTTP/2"
_ASGI = "wsgiserv serves WSGI applications; use an ASGI server for this one"
_DIRTY = "there are no dirty workers; run long tasks in a queue such as Celery, or on threads"
_IGNORED_TOO = "gunicorn ignores it, too"
_RENAMED = "gunicorn renamed it long ago and ignores it, too; name the hook {}"

# Advice, not a refusal: most of these change nothing here, and a file written for gunicorn is to start as it is.
_TABLE = (
    # Logging
    Ignored(
        "set errorlog, and capture_output for what the application prints",
        "enable_stdio_inheritance",
        "-R --{}",
        switch=True,
    ),
    # Processes
    # Protocol
    Ignored(_STRICT, "permit_obsolete_folding", switch=True),
    Ignored(_STRICT, "strip_header_spaces", switch=True),
    Ignored(_METHOD, "permit_unconventional_http_method", switch=True),
    Ignored(
        "requests of other versions than HTTP/1.0 and HTTP/1.1 are always refused",
        "permit_unconventional_http_version",
        switch=True,
    ),
    Ignored(_METHOD, "casefold_http_method", switch=True),
    Ignored("not needed: there is one parser, in Python, and it is fast", "http_parser", defaults=("auto", "python")),
    Ignored(_HTTP2, "http_protocols", defaults=("h1",)),
    Ignored(_HTTP2, "http2_cleartext", defaults=("off", False)),
    Ignored(_HTTP2, "http2_max_concurrent_streams", defaults=(100,)),
    Ignored(_HTTP2, "http2_initial_window_size", defaults=(65535,)),
    Ignored(_HTTP2, "http2_max_frame_size", defaults=(16384,)),
    Ignored(_HTTP2, "http2_max_header_list_size", defaults=(65536,)),
    # TLS; 2 is ssl.PROTOCOL_TLS
    Ignored(f"{_IGNORED_TOO}; TLS 1.2 and later are spoken; see the hook ssl_context", "ssl_version", defaults=(2,)),
    Ignored(
        "not needed: a client that closes without a TLS goodbye is an ordinary disconnect",
        "suppress_ragged_eofs",
        defaults=(True,),
        switch=True,
    ),
    Ignored(
        "not needed: a handshake never holds a worker, whenever it happens", "do_handshake_on_connect", switch=True
    ),
    # ASGI and dirty workers
    Ignored(_ASGI, "asgi_loop", defaults=("auto",)),
    Ignored(_ASGI, "asgi_lifespan", defaults=("auto",)),
    Ignored(_ASGI, "asgi_disconnect_grace_period", defaults=(3,)),
    Ignored(_ASGI, "websocket_max_message_size", defaults=(16 * 1024 * 1024,)),
    Ignored(_DIRTY, "dirty_apps", "--dirty-app"),
    Ignored(_DIRTY, "dirty_workers", defaults=(0,)),
    Ignored(_DIRTY, "dirty_timeout", defaults=(300,)),
    Ignored(_DIRTY, "dirty_threads", defaults=(1,)),
    Ignored(_DIRTY, "dirty_graceful_timeout", defaults=(30,)),
    Ignored(_DIRTY, "on_dirty_starting", function=True),
    Ignored(_DIRTY, "dirty_post_fork", function=True),
    Ignored(_DIRTY, "dirty_worker_init", function=True),
    Ignored(_DIRTY, "dirty_worker_exit", function=True),
    # Old names, still found in files; the present gunicorn ignores them in silence.
    Ignored(f"{_IGNORED_TOO}; use reload = True or loglevel = 'debug' for development", "debug", switch=True, old=True),
    Ignored(
        f"{_IGNORED_TOO}; for proxies see forwarded_headers and forwarded_allow_ips",
        "x_forwarded_for_header",
        "",
        old=True,
    ),
    Ignored(
        f"{_IGNORED_TOO}; set raw_env = ['DJANGO_SETTINGS_MODULE=...'] and wsgi_app",
        "django_settings",
        "--settings",
        old=True,
    ),
    Ignored(f"{_IGNORED_TOO}; there is one master, remove the line", "arbiter", "", old=True),
    Ignored(_RENAMED.format("pre_fork"), "before_fork", old=True, function=True),
    Ignored(_RENAMED.format("post_fork"), "after_fork", old=True, function=True),
    Ignored(_RENAMED.format("pre_exec"), "before_exec", old=True, function=True),
)

GUNICORN_ONLY: dict[str, Ignored] = {each.name: each for each in _TABLE}
