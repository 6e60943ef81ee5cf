"""The settings: one typed field each, declared once with all that is known of it.

Owns: `Settings` and the table of its declarations, `SETTINGS`. --help, the loader, --print-config and
docs/settings.md are made from that table.
Must not know: where values come from, what the rest of wsgiserv does with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from wsgiserv.config import address, worker_class
from wsgiserv.config import values as parsers
from wsgiserv.config.process_settings import ProcessSettings
from wsgiserv.config.setting import Setting, declared, setting

__all__ = ["SETTINGS", "Settings"]

_SWITCH = "True or False"
_SECONDS = (
    "a duration of 0 or more in seconds, at most 366 days, or text such as '500ms' or '2m'; for example 30"
)
_BYTES = "a size in bytes, at most 4194304T, or text such as '512K' or '10M'; for example '10M'"
_COUNT = "a whole number of 0 or more, at most 2147483647"
_LARGEST_LINE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings(ProcessSettings):
    """The whole configuration, checked, frozen; made by `wsgiserv.config.loader.load`.

    Durations are floats in seconds, sizes are integers in bytes.
    """

    # Application
    config: str | None = setting(
        None,
        section="Application",
        flags=("-c", "--config"),
        metavar="FILE",
        parse=parsers.path,
        accepts="the path of a Python file, 'file:PATH' or 'python:some.module'",
        help="The configuration: a Python file, or python:some.module.",
        doc="Without it, `./wsgiserv.conf.py` is read if it is there, else `./gunicorn.conf.py`.",
        in_file=False,
        show_default="./wsgiserv.conf.py",
    )
    wsgi_app: str | None = setting(
        None,
        section="Application",
        parse=parsers.text_or_none,
        accepts="'module:name'; for example 'hello:app'",
        help="The application, when it is not named on the command line.",
        doc=(
            "`module:app`, `module:obj.attr`, `module:factory()`, `module:factory('literal', debug=True)`, "
            "or `module` alone (then `application`, else `app`)."
        ),
    )

    # Listening
    bind: tuple[str, ...] = setting(
        ("127.0.0.1:8000",),
        section="Listening",
        flags=("-b", "--bind"),
        takes="values",
        metavar="ADDRESS",
        parse=parsers.addresses,
        accepts=address.ACCEPTED,
        environment="PORT",
        help="Where to listen: HOST:PORT, unix:PATH or fd://N; may be repeated.",
        doc=(
            f"{address.ACCEPTED[0].upper()}{address.ACCEPTED[1:]}. A list in a configuration file. "
            "When the environment has `PORT`, it stands for `0.0.0.0:$PORT`."
        ),
    )
    backlog: int = setting(
        2048,
        section="Listening",
        flags=("--backlog",),
        clamped=True,
        metavar="N",
        parse=parsers.integer(1),
        accepts="a whole number of at least 1 and at most 2147483647",
        help="How many connections may wait to be accepted.",
        doc="The kernel caps it (`net.core.somaxconn`).",
    )
    socket_mode: int | None = setting(
        None,
        section="Listening",
        flags=("--socket-mode",),
        metavar="MODE",
        parse=parsers.mode_or_none,
        accepts="a file mode: in text octal, as of chmod(1), for example 660; in a Python file 0o660",
        help="The mode of Unix sockets' files; octal.",
        doc=(
            "Who may write to the socket may connect, and **is trusted as a proxy**: set `660`, and a `group` that the "
            "proxy is in. The socket has this mode from the first moment on. Sockets of the service manager, and those "
            "that are kept over a reload, stay as they are."
        ),
        show_default="0777 without the bits of `umask`",
    )
    reuse_port: bool = setting(
        False,
        section="Listening",
        flags=("--reuse-port",),
        takes="nothing",
        parse=parsers.boolean,
        accepts=_SWITCH,
        help="Set SO_REUSEPORT on the listening sockets.",
    )

    # Workers
    workers: int = setting(
        1,
        section="Workers",
        flags=("-w", "--workers"),
        metavar="N",
        parse=parsers.workers,
        accepts="a whole number of at least 1 and at most 10000, or 'auto'",
        environment="WEB_CONCURRENCY",
        help="How many worker processes, or 'auto' to fit this container.",
        doc=(
            "`auto` counts the CPUs this process may use (the cgroup's quota and the affinity, not the "
            "host's cores): one worker per CPU for `threads` and `gevent`, twice as many and one more for "
            "`sync`; and at most one for each 128 MiB of the cgroup's memory limit."
        ),
    )
    workers_min: int | None = setting(
        None,
        section="Workers",
        flags=("--workers-min",),
        metavar="N",
        parse=parsers.integer(1, 10_000),
        accepts="a whole number of at least 1 and at most 10000, and workers_max beside it",
        help="Follow the load, with never fewer worker processes than this.",
        doc="See [Workers that follow the load](autoscaling.md). Without it the number of workers is fixed.",
        show_default="fixed",
    )
    workers_max: int | None = setting(
        None,
        section="Workers",
        flags=("--workers-max",),
        metavar="N",
        parse=parsers.workers,
        accepts="a whole number of at least workers_min and at most 10000, or 'auto', and workers_min beside it",
        help="Follow the load, with never more worker processes than this.",
        doc="`auto` is what `auto` is for `workers`. `workers` is the number to begin with; without it, `workers_min`.",
        show_default="fixed",
    )
    scale_window: float = setting(
        30.0,
        section="Workers",
        flags=("--scale-window",),
        metavar="SECONDS",
        parse=parsers.scale_window,
        accepts="a duration of 1 second to 1 hour; for example 30 or '2m'",
        help="Retire a worker when the load has been low for so long.",
        doc="With `workers_min` and `workers_max`. Growing is decided on a tenth of it, 0.5 to 5 seconds.",
    )
    worker_class: str | type[Any] = setting(
        worker_class.DEFAULT,
        section="Workers",
        flags=("-k", "--worker-class"),
        metavar="CLASS",
        parse=worker_class.worker_class,
        accepts=worker_class.ACCEPTED,
        help="How a worker serves: sync, threads, gevent, or a dotted path.",
        doc="gunicorn's `gthread`, its dotted paths and `egg:gunicorn#gevent` are mapped to ours.",
    )
    threads: int = setting(
        1,
        section="Workers",
        flags=("--threads",),
        metavar="N",
        parse=parsers.integer(1, 10_000),
        accepts="a whole number of at least 1 and at most 10000",
        help="Threads per worker; more than one selects the class threads.",
    )
    worker_connections: int = setting(
        1000,
        section="Workers",
        flags=("--worker-connections",),
        clamped=True,
        metavar="N",
        parse=parsers.integer(1),
        accepts="a whole number of at least 1 and at most 2147483647",
        help="How many connections a worker keeps open at once.",
    )
    max_requests: int = setting(
        0,
        section="Workers",
        flags=("--max-requests",),
        clamped=True,
        metavar="N",
        parse=parsers.integer(0),
        accepts=_COUNT,
        help="Replace a worker after this many requests; 0 is never.",
    )
    max_requests_jitter: int = setting(
        0,
        section="Workers",
        flags=("--max-requests-jitter",),
        clamped=True,
        metavar="N",
        parse=parsers.integer(0),
        accepts=_COUNT,
        help="Add up to this many to `max_requests`, by chance, per worker.",
    )

    max_worker_lifetime: float = setting(
        0.0,
        section="Workers",
        flags=("--max-worker-lifetime",),
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="Replace a worker of this age, up to a tenth earlier; 0 is never.",
    )
    max_worker_memory: int = setting(
        0,
        section="Workers",
        flags=("--max-worker-memory",),
        metavar="BYTES",
        parse=parsers.size(),
        accepts=f"{_BYTES}, or 0 for no limit",
        help="Replace a worker that stays above this much memory; 0 is never.",
        doc=(
            "What counts is the memory that the worker would free by its end: its private pages, and its share of "
            "those it has in common with others (PSS; RSS where the system does not tell). It is sampled every 5 "
            "seconds, and three samples in a row have to be above. A limit that the first worker exceeds before its "
            "first request ends the start with status 2, and a reload."
        ),
    )
    max_unavailable: int = setting(
        1,
        section="Workers",
        flags=("--max-unavailable",),
        metavar="N",
        parse=parsers.integer(1, 10_000),
        accepts="a whole number of at least 1 and at most 10000",
        help="How many workers may be on their way out to be recycled at once.",
        doc=(
            "Recycled is who has reached `max_requests`, `max_worker_lifetime` or `max_worker_memory`. A worker "
            "serves until its successor is ready. One that only keeps idle connections (`tls_linger`) does not count."
        ),
    )
    reload_surge: int = setting(
        1,
        section="Workers",
        flags=("--reload-surge",),
        metavar="N",
        parse=parsers.integer(1, 10_000),
        accepts="a whole number of at least 1 and at most 10000",
        help="How many workers more than wanted there may be during a reload.",
        doc=(
            "A reload boots one worker of the new configuration; when that is ready the old ones are replaced, this "
            "many at a time, each when its successor is ready."
        ),
    )
    handoff_after: float = setting(
        0.05,
        section="Workers",
        flags=("--handoff-after",),
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="Hand over who waits behind a call that lasts longer; 0 is never.",
        doc=(
            "For `sync` with two workers or more. A sync worker runs one call at a time; clients on kept connections "
            "whose next request comes meanwhile are passed to a worker that is free. TLS connections cannot be passed "
            "on. In all classes 0 also keeps a worker that has been busy without a pause for some seconds from passing "
            "connections to workers that have little to do."
        ),
    )
    warmup: tuple[str, ...] = setting(
        (),
        section="Workers",
        flags=("--warmup",),
        takes="values",
        metavar="PATH",
        parse=parsers.warmup_paths,
        accepts="paths that begin with '/', such as '/' or '/search?q=a'",
        help="Call the application with this path before a worker is ready.",
        doc=(
            "In each worker, one GET after the other, as a client of this machine would send it to the first address: "
            "`root_path` is taken off. An exception or a status of 500 and above means that the worker cannot boot: at "
            "the start the server ends with status 4, at a reload the old workers stay. A status of 400 to 499 is a "
            "warning in the log. The environ has `wsgiserv.warmup` set to True. The hooks around requests are not "
            "called, and there is no line in the access log."
        ),
    )

    # Timeouts
    boot_timeout: float | None = setting(
        None,
        section="Timeouts",
        flags=("--boot-timeout",),
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="How long a worker may take to load the application; 0 is for ever.",
        show_default="30, or `timeout` where that is longer",
    )
    drain_delay: float = setting(
        0.0,
        section="Timeouts",
        flags=("--drain-delay",),
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="After TERM, go on accepting for so long, while load balancers learn of it.",
        doc=(
            "Meanwhile responses say `Connection: close`, `readiness_path` answers 503, and `wsgiservctl status` says "
            "that the server is draining. Then it stops gracefully, within `graceful_timeout`."
        ),
    )
    readiness_path: str = setting(
        "",
        section="Timeouts",
        flags=("--readiness-path",),
        metavar="PATH",
        parse=parsers.readiness_path,
        accepts="a path that begins with a slash and has no query; for example '/-/ready'",
        help="Answer requests for this path with 200, with 503 while the server drains.",
        show_default="none",
        doc=(
            "For load balancers that ask over HTTP; the application does not see these requests, the access log does. "
            "Use it with `drain_delay`: longer than the balancer takes to notice."
        ),
    )
    timeout: float = setting(
        30.0,
        section="Timeouts",
        flags=("-t", "--timeout"),
        clamped=True,
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="Kill a worker that has been silent for so long; 0 is never.",
    )
    graceful_timeout: float = setting(
        30.0,
        section="Timeouts",
        flags=("--graceful-timeout",),
        clamped=True,
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="How long a worker that was told to stop may finish its requests.",
    )
    keepalive: float = setting(
        75.0,
        section="Timeouts",
        flags=("--keep-alive",),
        hidden_flags=("--keepalive",),
        clamped=True,
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="How long an idle connection is kept open; 0 closes at once.",
        doc="gunicorn's default is 2. Behind a proxy it should be longer than the proxy's own.",
    )
    header_timeout: float = setting(
        10.0,
        section="Timeouts",
        flags=("--header-timeout",),
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="How long a client may take to send a request's head; 0 is for ever.",
    )
    body_timeout: float = setting(
        30.0,
        section="Timeouts",
        flags=("--body-timeout",),
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="How long a client may be silent within a body; 0 is for ever.",
    )
    body_min_rate: int = setting(
        240,
        section="Timeouts",
        flags=("--body-min-rate",),
        metavar="BYTES",
        parse=parsers.size(zero=0),
        accepts="bytes per second as a whole number up to 4194304T, or 0 for any rate",
        help="How fast a body must come after `body_timeout`, in bytes per second.",
        doc=(
            "Averaged over the whole body, once `body_timeout` has passed: a client that sends a byte now and "
            "then makes progress for ever. It is answered with 408."
        ),
    )
    send_timeout: float = setting(
        60.0,
        section="Timeouts",
        flags=("--send-timeout",),
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="How long a client may take nothing of a response; 0 is for ever.",
    )

    request_timeout: float = setting(
        0.0,
        section="Timeouts",
        flags=("--request-timeout",),
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="How long the application may take for one request; 0 is for ever.",
        doc=(
            "The client of an overdue request is answered with 504, or its connection is reset when the response has "
            "begun. The log has the request line, its id, its age and the stack. In `threads` an exception is raised "
            "in the one thread, in `gevent` a `gevent.Timeout` in the one greenlet; a `sync` worker is replaced."
        ),
    )
    gevent_block_warning: float = setting(
        5.0,
        section="Timeouts",
        flags=("--gevent-block-warning",),
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="Log a call that keeps a gevent worker from all others so long; 0 is off.",
    )

    # Limits
    limit_request_line: int = setting(
        8190,
        section="Limits",
        flags=("--limit-request-line",),
        clamped=True,
        metavar="BYTES",
        parse=parsers.size(_LARGEST_LINE, zero=_LARGEST_LINE),
        accepts="a size in bytes up to '1M', or 0 for the largest",
        help="The longest request line; a longer one is answered with 414.",
        doc="0 is the largest, 1 MiB. gunicorn's default is 4094.",
    )
    limit_request_fields: int = setting(
        100,
        section="Limits",
        flags=("--limit-request-fields",),
        clamped=True,
        metavar="N",
        parse=lambda raw: parsers.integer(0, 32768)(raw) or 32768,
        accepts="a whole number up to 32768, or 0 for the largest",
        help="The most header fields in a request.",
    )
    limit_request_field_size: int = setting(
        8190,
        section="Limits",
        flags=("--limit-request-field-size",),
        hidden_flags=("--limit-request-field_size",),
        clamped=True,
        metavar="BYTES",
        parse=parsers.size(_LARGEST_LINE, zero=_LARGEST_LINE),
        accepts="a size in bytes up to '1M', or 0 for the largest",
        help="The longest header field.",
        doc="0 is the largest, 1 MiB.",
    )
    limit_request_body: int = setting(
        1 << 30,
        section="Limits",
        flags=("--limit-request-body",),
        metavar="BYTES",
        parse=parsers.size(),
        accepts=f"{_BYTES}, or 0 for no limit",
        help="The largest request body (413 above it); 0 is no limit.",
        show_default="1 GiB",
    )
    body_buffer_size: int = setting(
        1 << 20,
        section="Limits",
        flags=("--body-buffer-size",),
        metavar="BYTES",
        parse=parsers.size(),
        accepts=_BYTES,
        help="Bodies up to this size are kept in memory, larger ones in a file.",
        show_default="1 MiB",
    )
    stream_buffer: int = setting(
        1 << 20,
        section="Limits",
        flags=("--stream-buffer",),
        metavar="BYTES",
        parse=parsers.size(),
        accepts=_BYTES,
        help="How far a response of unknown length may run ahead of its client.",
        show_default="1 MiB",
        doc=(
            "Then the application waits in `threads` and `gevent` until the client has taken some of it. In `sync`, "
            "where that would stop all other clients of the worker, it goes on, into a file, until 64 MiB wait. A "
            "response with a `Content-Length`, or of one block, and a file never wait: they leave the application at "
            "once. See [streaming responses](streaming-responses.md)."
        ),
    )
    spool_dir: str | None = setting(
        None,
        section="Limits",
        flags=("--spool-dir",),
        metavar="DIR",
        parse=parsers.path,
        accepts="a directory that exists",
        aliases=("tmp_upload_dir",),
        help="Where large request bodies are kept while they arrive.",
        doc="The workers must be able to make files there, or the start ends with status 2.",
        show_default="the system's temporary directory",
    )

    stream_request_body: Literal["auto", "on", "off"] = setting(
        "auto",
        section="Limits",
        flags=("--stream-request-body",),
        metavar="WHEN",
        parse=parsers.stream_request_body,
        accepts="'auto', 'on' or 'off'",
        choices=("auto", "on", "off"),
        help="Call the application before a request's body is complete.",
        doc=(
            "`on` calls it as soon as the head is here, and `wsgi.input` waits for the client: a slow client then "
            "holds its thread, or the whole `sync` worker. `auto` does so in `gevent` only, for bodies larger than "
            "`body_buffer_size`; everywhere else they go to a file first. `off` never does."
        ),
    )

    # Proxies and headers
    forwarded_allow_ips: tuple[str, ...] = setting(
        ("127.0.0.1", "::1"),
        section="Proxies and headers",
        flags=("--forwarded-allow-ips",),
        metavar="LIST",
        parse=parsers.networks,
        accepts="IP addresses and networks separated by commas, or '*'; for example '10.0.0.0/8'",
        environment="FORWARDED_ALLOW_IPS",
        help="The proxies whose forwarded headers are believed; '*' is any.",
        doc=(
            "Clients on a Unix socket are believed, too. From anybody else such headers never reach the "
            "application. The environment's value is the default: a configuration file or a flag replaces it."
        ),
    )
    forwarded_headers: tuple[str, ...] = setting(
        (),
        section="Proxies and headers",
        flags=("--forwarded-headers",),
        metavar="LIST",
        parse=parsers.forwarded_headers,
        accepts="any of for, proto, host, port and prefix, separated by commas; or 'forwarded' alone",
        help="Which of a believed proxy's headers are used; e.g. for,proto,host.",
        doc=(
            "`for`, `proto`, `host`, `port` and `prefix` are `X-Forwarded-For` and so on, `forwarded` is RFC "
            "7239's `Forwarded`. Name only what your proxy sets itself on every request: anything else would "
            "be its client's word. See [Behind a proxy](proxies.md)."
        ),
    )
    secure_scheme_headers: dict[str, str] = setting(
        {"X-FORWARDED-PROTOCOL": "ssl", "X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"},
        section="Proxies and headers",
        parse=parsers.header_values,
        accepts="a dictionary of header names and the values that mean https",
        help="The headers, and their values, by which a proxy says that its client used https.",
    )
    proxy_protocol: Literal["off", "v1", "v2", "auto"] = setting(
        "off",
        section="Proxies and headers",
        flags=("--proxy-protocol",),
        takes="optional",
        metavar="[VERSION]",
        parse=parsers.proxy_protocol,
        accepts="'off', 'v1', 'v2' or 'auto'",
        choices=("off", "v1", "v2", "auto"),
        help="Read HAProxy's PROXY protocol; without a value, 'auto'.",
        doc=(
            "`v1` and `v2` ask every peer in `proxy_allow_ips` for a header of that version (400 without it), "
            "`auto` takes either, or none. With TLS, the header comes before the handshake, in clear."
        ),
    )
    proxy_allow_ips: tuple[str, ...] = setting(
        ("127.0.0.1", "::1"),
        section="Proxies and headers",
        flags=("--proxy-allow-from",),
        metavar="LIST",
        parse=parsers.networks,
        accepts="IP addresses and networks separated by commas, or '*'; for example '10.0.0.0/8'",
        help="The proxies that may speak the PROXY protocol; '*' is any.",
        doc="Clients on a Unix socket always may.",
    )
    protocol: Literal["http", "uwsgi"] = setting(
        "http",
        section="Proxies and headers",
        flags=("--protocol",),
        metavar="NAME",
        parse=parsers.protocol,
        accepts="'http' or 'uwsgi'",
        choices=("http", "uwsgi"),
        help="What is spoken on the listeners; uwsgi is for nginx's uwsgi_pass.",
        doc="See [Behind a proxy](proxies.md).",
    )
    uwsgi_allow_ips: tuple[str, ...] = setting(
        ("127.0.0.1", "::1"),
        section="Proxies and headers",
        flags=("--uwsgi-allow-from",),
        metavar="LIST",
        parse=parsers.networks,
        accepts="IP addresses and networks separated by commas, or '*'; for example '10.0.0.0/8'",
        help="The proxies that may speak uwsgi; '*' is any.",
        doc="Clients on a Unix socket always may. Others are closed: all that a uwsgi request says is believed.",
    )
    forwarder_headers: tuple[str, ...] = setting(
        ("SCRIPT_NAME", "PATH_INFO"),
        section="Proxies and headers",
        flags=("--forwarder-headers",),
        metavar="LIST",
        parse=parsers.words,
        accepts="header names separated by commas",
        help="Headers with underscores that a trusted proxy may set.",
        doc=(
            "`SCRIPT_NAME` must be a prefix of the request's path, which it is taken off; anything else is 400. Other "
            "names become `HTTP_...` as any header does, so `PATH_INFO` and `REMOTE_USER` are never set by one. `*` is "
            "any name. A proxy that lets underscores pass (HAProxy; nginx with `underscores_in_headers`) must remove "
            "what its clients send under these names; or leave the list empty. See [Behind a proxy](proxies.md)."
        ),
    )
    header_map: Literal["drop", "refuse", "dangerous"] = setting(
        "drop",
        section="Proxies and headers",
        flags=("--header-map",),
        metavar="WHAT",
        parse=parsers.header_map,
        accepts="'drop', 'refuse' or 'dangerous'",
        choices=("drop", "refuse", "dangerous"),
        help="What is done with headers whose names have underscores.",
        doc=(
            "`X_Name` and `X-Name` are the same in the environ, so that a client can forge one by the other. "
            "`drop` leaves the first out, `refuse` answers 400, `dangerous` lets both in."
        ),
    )
    root_path: str = setting(
        "",
        section="Proxies and headers",
        flags=("--root-path",),
        metavar="PATH",
        parse=parsers.root_path,
        accepts="a path that begins with a slash; for example '/shop'",
        help="The path that the application is mounted under (SCRIPT_NAME).",
        show_default="none",
    )


SETTINGS: dict[str, Setting] = declared(Settings)
