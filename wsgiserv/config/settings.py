"""Declares the settings: one typed field each, with all facts about it.

--help, the loader, --print-config and docs/settings.md are made from the table of declarations, `SETTINGS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from wsgiserv.config import address
from wsgiserv.config import values as parsers
from wsgiserv.config.monitoring_settings import MonitoringSettings
from wsgiserv.config.process_settings import ProcessSettings
from wsgiserv.config.setting import Kind, Section, Setting, declared
from wsgiserv.config.values import (
    BYTES,
    BYTES_OR_UNLIMITED,
    COUNT,
    COUNT_FROM_1,
    COUNT_TO_10000,
    FILE,
    LINE_BYTES,
    NETWORKS,
    SECONDS,
    SWITCH,
    WORKERS,
    choice,
)
from wsgiserv.config.worker_class import WORKER_CLASS

# The values of a switch, for settings that were one, or look like one.
_ON_OR_OFF = {"true": "on", "yes": "on", "1": "on", "false": "off", "no": "off", "0": "off"}
_AUTO_OR_OFF = {"true": "auto", "1": "auto", "false": "off", "0": "off", "none": "off"}


@dataclass(frozen=True, kw_only=True)
class Settings(MonitoringSettings, ProcessSettings):
    """The whole configuration, checked, frozen; made by `wsgiserv.config.loader.load`.

    Durations are floats in seconds, sizes are integers in bytes.

    Attributes:
        given: the settings that a flag, a file or the environment sets, be it to their default, and those that the
            loader derives from these.
    """

    # Application
    # Not in a file: the file is already chosen when its names are read.
    config: str | None = Section.APPLICATION(
        None,
        FILE,
        "The configuration: a Python file, or python:some.module.",
        "-c --config",
        accepts="the path of a Python file, 'file:PATH' or 'python:some.module'",
        doc="Without it, `./wsgiserv.conf.py` is read if it is there, else `./gunicorn.conf.py`.",
        in_file=False,
        show_default="./wsgiserv.conf.py",
    )
    # No flag: on the command line the application is the one argument without a flag.
    wsgi_app: str | None = Section.APPLICATION(
        None,
        Kind(parsers.text_or_none, "'module:name'; for example 'hello:app'"),
        "The application, when it is not named on the command line.",
        "",
        doc="""`module:app`, `module:obj.attr`, `module:factory()`, `module:factory('literal', debug=True)`, or
            `module` alone (then `application`, else `app`).""",
    )

    # An application's deployment is described in one file there: Pyramid's way.
    paste: str | None = Section.APPLICATION(
        None,
        Kind(parsers.path, "a file that exists, and '#name' for another application than main", "FILE[#NAME]"),
        "Serve an application of a PasteDeploy file.",
        hidden_flags=("--paster",),
        doc="""Such as `production.ini#admin`; it goes before `wsgi_app`. The file's `[loggers]` are `logconfig`, unless
            that is set. It needs the package PasteDeploy: `pip install 'wsgiserv[paste]'`. A file with
            `use = egg:wsgiserv#main` in its `[server:main]` is served by `pserve`, too, and has the settings there: see
            [Frameworks](frameworks.md#pastedeploy-files).""",
        show_default="none",
    )
    raw_paste_global_conf: tuple[str, ...] = Section.APPLICATION(
        (),
        Kind(parsers.environment_pairs, "KEY=VALUE, or a list of such", "KEY=VALUE", "many"),
        "Set a variable for the PasteDeploy file; may be repeated.",
        "--paste-global",
    )

    # Listening
    # The loopback: a server tried out for the first time must not be reachable from the network. gunicorn's default,
    # too.
    bind: tuple[str, ...] = Section.LISTENING(
        ("127.0.0.1:8000",),
        Kind(parsers.addresses, address.ACCEPTED, "ADDRESS", "many"),
        "Where to listen: HOST:PORT, unix:PATH or fd://N; may be repeated.",
        "-b --bind",
        environment="PORT",
        doc=f"""{address.ACCEPTED[0].upper()}{address.ACCEPTED[1:]}. A list in a configuration file. `PORT` in
            the environment stands for `0.0.0.0:$PORT`, where nothing else gives an address.""",
    )
    # gunicorn's number. A large one absorbs the moment of a reload or a crash; a client that waits is better off than
    # a refused one.
    backlog: int = Section.LISTENING(
        2048,
        COUNT_FROM_1,
        "How many connections may wait to be accepted.",
        clamped=True,
        doc="The kernel caps it (`net.core.somaxconn`).",
    )
    # None, not 0o777: a mode set by hand goes before the umask, and the default must follow it.
    socket_mode: int | None = Section.LISTENING(
        None,
        Kind(
            parsers.mode_or_none,
            "a file mode: in text octal, as of chmod(1), for example 660; in a Python file 0o660",
            "MODE",
        ),
        "The mode of Unix sockets' files; octal.",
        doc="""A process that may write to the socket may connect, and **is trusted as a proxy**: set `660`, and
            a `group` that the proxy is in. The socket has this mode from the first moment on. Sockets of the service
            manager, and those that are kept over a reload, stay as they are.""",
        show_default="0777 without the bits of `umask`",
    )
    # Off: a second server started by mistake must fail to bind. With it both would share the port, unnoticed.
    reuse_port: bool = Section.LISTENING(False, SWITCH, "Set SO_REUSEPORT on the listening sockets.")

    # Workers
    # One, as in gunicorn: more would break applications with state in memory. Not 'auto' either: the same file must
    # mean the same everywhere.
    workers: int = Section.WORKERS(
        1,
        WORKERS,
        "The number of worker processes, or 'auto' to fit this container.",
        "-w --workers",
        environment="WEB_CONCURRENCY",
        doc="""`auto` counts the CPUs this process may use (the cgroup's quota and the affinity, not the host's
            cores): one worker per CPU for `threads` and `gevent`, twice as many and one more for `sync`; and at most
            one for each 128 MiB of the cgroup's memory limit.""",
    )
    # Both bounds are given, or neither: each alone leaves open how far the number may go.
    workers_min: int | None = Section.WORKERS(
        None,
        COUNT_TO_10000,
        "Follow the load, with never fewer worker processes than this.",
        accepts=f"{COUNT_TO_10000.accepts}, and workers_max beside it",
        doc="See [Workers that follow the load](autoscaling.md). Without it the number of workers is fixed.",
        show_default="fixed",
    )
    workers_max: int | None = Section.WORKERS(
        None,
        WORKERS,
        "Follow the load, with never more worker processes than this.",
        accepts="a whole number of at least workers_min and at most 10000, or 'auto', and workers_min beside it",
        doc="`auto` is as for `workers`. `workers` is the number to begin with; without it, `workers_min`.",
        show_default="fixed",
    )
    # Retiring slowly and growing ten times as fast: a worker too many costs memory, one too few costs requests. Below
    # a second the load is noise; above an hour nothing would ever retire.
    scale_window: float = Section.WORKERS(
        30.0,
        Kind(parsers.scale_window, "a duration of 1 second to 1 hour; for example 30 or '2m'", "SECONDS"),
        "Retire a worker when the load has been low for this long.",
        doc="With `workers_min` and `workers_max`. Growing is decided on a tenth of it, 0.5 to 5 seconds.",
    )
    # sync: the only class that is safe for an application that is neither thread-safe nor patched.
    worker_class: str | type[Any] = Section.WORKERS(
        "sync",
        WORKER_CLASS,
        "How a worker serves: sync, threads, gevent, or a dotted path.",
        "-k --worker-class",
        doc="""gunicorn's `gthread`, its dotted paths and `egg:gunicorn#gevent` are mapped to ours.
            `geventwebsocket.gunicorn.workers.GeventWebSocketWorker` and `flask_sockets.worker` are `gevent` with
            `wsgi_websocket`.""",
    )
    # Off: the client is answered before the application is called, which would break one that uses the socket itself.
    wsgi_websocket: bool = Section.WORKERS(
        False,
        SWITCH,
        "Give WebSocket requests environ['wsgi.websocket'], as gevent-websocket does.",
        doc="""For applications written for gevent-websocket or Flask-Sockets, in `gevent` or `threads`. It needs the
            package wsproto: `pip install 'wsgiserv[websocket]'`. A message may have as many bytes as
            `limit_request_body` says. flask-sock and Flask-SocketIO do not need it: see
            [WebSockets](websockets.md).""",
    )
    threads: int = Section.WORKERS(1, COUNT_TO_10000, "Threads per worker; more than one selects the class threads.")
    # Bounds memory and descriptors. gunicorn's number, though here it holds for each class.
    worker_connections: int = Section.WORKERS(
        1000, COUNT_FROM_1, "How many connections a worker keeps open at once.", clamped=True
    )
    # Off: recycling hides a leak, and costs a start of the application each time.
    max_requests: int = Section.WORKERS(
        0, COUNT, "Recycle a worker after this many requests; 0 is no limit.", clamped=True
    )
    # Without it workers that started together would all be recycled together.
    max_requests_jitter: int = Section.WORKERS(
        0, COUNT, "Add up to this many to `max_requests`, at random, per worker.", clamped=True
    )

    max_worker_lifetime: float = Section.WORKERS(
        0.0, SECONDS, "Recycle a worker of this age, up to a tenth earlier; 0 is no limit."
    )
    # Memory of one worker has peaks (a large page, the garbage collector's cycle), so a single sample decides
    # nothing.
    max_worker_memory: int = Section.WORKERS(
        0,
        BYTES_OR_UNLIMITED,
        "Recycle a worker that stays above this much memory; 0 is no limit.",
        doc="""The memory that counts is what the worker's exit would free: its private pages, and its share of
            the pages in common with others (PSS; RSS where the system does not tell). It is sampled every 5 seconds,
            and three samples in a row must be above. A limit that the first worker exceeds before its first request
            ends the start with status 2, and fails a reload.""",
    )
    # One: more at a time take more of the capacity that the load was sized for.
    max_unavailable: int = Section.WORKERS(
        1,
        COUNT_TO_10000,
        "How many workers may be recycled at a time.",
        doc="""A worker is recycled when it reaches `max_requests`, `max_worker_lifetime` or `max_worker_memory`.
            It serves until its replacement is ready. A worker that only keeps idle connections (`tls_linger`) does not
            count.""",
    )
    # One: during a reload the memory of one more worker must fit, and on small hosts no more does.
    reload_surge: int = Section.WORKERS(
        1,
        COUNT_TO_10000,
        "How many extra workers a reload may start at a time.",
        doc="""A reload starts one worker of the new configuration; when that is ready the old ones are replaced,
            this many at a time, each when its replacement is ready.""",
    )
    # 50 ms: longer than a usual call, so that in ordinary traffic nothing is moved; shorter than a person notices.
    handoff_after: float = Section.WORKERS(
        0.05,
        SECONDS,
        "Pass waiting connections to a free worker when a call runs longer than this; 0 turns it off.",
        doc="""For `sync` with two workers or more. A sync worker runs one call at a time; when the next request
            arrives on a kept connection meanwhile, the connection is passed to a worker that is free. TLS connections
            cannot be passed on. In all classes 0 also keeps a worker that has been busy without a pause for some
            seconds from passing connections to workers that have little to do.""",
    )
    # Empty: a GET may have effects in an application, so that no path is safe by itself.
    warmup: tuple[str, ...] = Section.WORKERS(
        (),
        Kind(parsers.warmup_paths, "paths that begin with '/', such as '/' or '/search?q=a'", "PATH", "many"),
        "Call the application with this path before a worker is ready.",
        doc="""In each worker, one GET after the other, as a client of this machine would send it to the first
            address: `root_path` is taken off. An exception or a status of 500 and above means that the worker cannot
            boot: at the start the server exits with status 4, at a reload the old workers stay. A status of 400 to
            499 is a warning in the log. The environ has `wsgiserv.warmup` set to True. The hooks around requests are
            not called, and there is no line in the access log.""",
    )

    # Timeouts
    # None, not 30: a `timeout` raised for a slow application (Django with many imports) is meant for its start as
    # well.
    boot_timeout: float | None = Section.TIMEOUTS(
        None,
        SECONDS,
        "How long a worker may take to load the application; 0 is no limit.",
        show_default="30, or `timeout` where that is longer",
    )
    # Zero: only behind a load balancer is there something to wait for; at a terminal Ctrl-C is to stop at once.
    drain_delay: float = Section.TIMEOUTS(
        0.0,
        SECONDS,
        "After TERM, go on accepting for this long, while load balancers learn of it.",
        doc="""Meanwhile responses say `Connection: close`, `readiness_path` answers 503, and `wsgiservctl
            status` says that the server is draining. Then it stops gracefully, within `graceful_timeout`.""",
    )
    # Empty: no path of the application may be shadowed unless it is asked for.
    readiness_path: str = Section.TIMEOUTS(
        "",
        Kind(
            parsers.readiness_path, "a path that begins with a slash and has no query; for example '/-/ready'", "PATH"
        ),
        "Answer requests for this path with 200, with 503 while the server drains.",
        show_default="none",
        doc="""For load balancers that ask over HTTP; the application does not see these requests, the access log
            does. Use it with `drain_delay`: longer than the balancer takes to notice.""",
    )
    # 30 s, as in gunicorn. `clamped` here and below: gunicorn takes any number, and 'for ever' is often written as a
    # very large one.
    timeout: float = Section.TIMEOUTS(
        30.0,
        SECONDS,
        "Kill a worker that has not responded for this long; 0 turns it off.",
        "-t --timeout",
        clamped=True,
    )
    # gunicorn's. A service manager must wait a little longer before it kills: see docs/deployment.md.
    graceful_timeout: float = Section.TIMEOUTS(
        30.0, SECONDS, "How long a stopping worker may take to finish its requests.", clamped=True
    )
    # Longer than a proxy keeps its own connections (nginx 60 s, AWS ALB 60 s): else a request may cross our close,
    # and the proxy answers 502. An idle connection holds no worker here, so it is cheap.
    keepalive: float = Section.TIMEOUTS(
        75.0,
        SECONDS,
        "How long an idle connection is kept open; 0 closes at once.",
        "--keep-alive",
        hidden_flags=("--keepalive",),
        clamped=True,
        doc="gunicorn's default is 2. Behind a proxy it should be longer than the proxy's own.",
    )
    # From the head's first byte, however it drips: Slowloris keeps a timeout between bytes alive for ever.
    header_timeout: float = Section.TIMEOUTS(
        10.0, SECONDS, "How long a client may take to send a request's head; 0 is no limit."
    )
    # Between two pieces, not for the whole: a large upload over a slow line takes as long as it must.
    body_timeout: float = Section.TIMEOUTS(30.0, SECONDS, "How long a client may pause within a body; 0 is no limit.")
    # Closes the gap that `body_timeout` leaves: a byte every 29 s. 240 bytes/s is Kestrel's figure; no line in use is
    # that slow.
    body_min_rate: int = Section.TIMEOUTS(
        240,
        BYTES,
        "The least speed of a body after `body_timeout`, in bytes per second.",
        accepts="bytes per second as a whole number up to 4194304T, or 0 for any rate",
        doc="""Averaged over the whole body, once `body_timeout` has passed: a client that sends a byte now and
            then never reaches `body_timeout`. A slower client gets 408.""",
    )
    # Longer than `body_timeout`: a person may pause a download, or a phone sleep for a moment.
    send_timeout: float = Section.TIMEOUTS(
        60.0, SECONDS, "How long a client may take nothing of a response; 0 is no limit."
    )

    # Off: only the application's owner knows what its longest request is, and raising in a thread may break an
    # invariant there.
    request_timeout: float = Section.TIMEOUTS(
        0.0,
        SECONDS,
        "How long the application may take for one request; 0 is no limit.",
        doc="""The client of an overdue request gets 504, or its connection is reset when the response has begun.
            The log has the request line, its id, its age and the stack. In `threads` an exception is raised in the
            one thread, in `gevent` a `gevent.Timeout` in the one greenlet; a `sync` worker is replaced.""",
    )
    # Long enough that a garbage collection or a slow import does not set it off.
    gevent_block_warning: float = Section.TIMEOUTS(
        5.0, SECONDS, "Log a call that blocks a gevent worker for this long; 0 turns it off."
    )

    # Limits
    # Not gunicorn's 4094: tracking parameters and signed URLs outgrow it. Browsers and proxies stop near 8 KB.
    limit_request_line: int = Section.LIMITS(
        8190,
        LINE_BYTES,
        "The longest request line; a longer one gets 414.",
        clamped=True,
        doc="0 is the largest, 1 MiB. gunicorn's default is 4094.",
    )
    # Each field costs time in every middleware. 32768 is gunicorn's bound.
    limit_request_fields: int = Section.LIMITS(
        100,
        Kind(
            lambda raw: parsers.integer(0, 32768)(raw) or 32768, "a whole number up to 32768, or 0 for the largest", "N"
        ),
        "The most header fields in a request.",
        clamped=True,
    )
    # Large cookies fit. The hidden flag is gunicorn's, with its underscore.
    limit_request_field_size: int = Section.LIMITS(
        8190,
        LINE_BYTES,
        "The longest header field.",
        hidden_flags=("--limit-request-field_size",),
        clamped=True,
        doc="0 is the largest, 1 MiB.",
    )
    # gunicorn has no limit. A disk is finite, and a body goes to it before the application can refuse it.
    limit_request_body: int = Section.LIMITS(
        1 << 30, BYTES_OR_UNLIMITED, "The largest request body (413 above it); 0 is no limit.", show_default="1 GiB"
    )
    # Most bodies are smaller and need no file; a thousand uploads together are bounded apart (64 MiB a worker).
    body_buffer_size: int = Section.LIMITS(
        1 << 20, BYTES, "Bodies up to this size are kept in memory, larger ones in a file.", show_default="1 MiB"
    )
    # Enough that a client at the other end of a fast line never waits for the application between two round trips.
    stream_buffer: int = Section.LIMITS(
        1 << 20,
        BYTES,
        "How far a response of unknown length may run ahead of its client.",
        show_default="1 MiB",
        doc="""Then the application waits in `threads` and `gevent` until the client has taken some of it. In
            `sync`, where that would stop all other clients of the worker, it goes on, into a file, until 64 MiB wait.
            A response with a `Content-Length`, or of one block, and a file never wait: they leave the application at
            once. See [streaming responses](streaming-responses.md).""",
    )
    # `tmp_upload_dir` is gunicorn's name.
    spool_dir: str | None = Section.LIMITS(
        None,
        FILE,
        "Where large request bodies are kept while they arrive.",
        metavar="DIR",
        accepts="a directory that exists",
        aliases=("tmp_upload_dir",),
        doc="The workers must be able to make files there, or the start ends with status 2.",
        show_default="the system's temporary directory",
    )

    # auto: only where a waiting call costs a greenlet, not a thread or a worker, may a client's speed reach the
    # application.
    stream_request_body: Literal["auto", "on", "off"] = Section.LIMITS(
        "auto",
        choice("auto", "on", "off", metavar="WHEN", other=_ON_OR_OFF),
        "Call the application before a request's body is complete.",
        doc="""`on` calls it as soon as the head is here, and `wsgi.input` waits for the client: a slow client
            then holds its thread, or the whole `sync` worker. `auto` does so in `gevent` only, for bodies larger than
            `body_buffer_size`; everywhere else they go to a file first. `off` never does.""",
    )

    # auto: a turn with few requests, or quick ones, gains nothing, and its answers leave at once.
    cork: Literal["auto", "off"] = Section.LIMITS(
        "auto",
        choice("auto", "off", metavar="WHEN", other=_AUTO_OR_OFF),
        "Let small answers that are made in one turn leave together.",
        doc="""Under load, small answers that a worker makes back to back wait for each other in the kernel: for half a
            millisecond, or half of the loop's turn if that is less, and until the call in which that is over ends. So
            clients are woken once for several. A call that lasts all of a sudden holds up none for more than 25 ms.
            `off` sends each at once. See docs/performance.md.""",
    )

    # Proxies and headers
    # This host alone: anything else lets a client on the network name its own address. Both loopbacks, since
    # 'localhost' in a proxy's configuration may be either.
    forwarded_allow_ips: tuple[str, ...] = Section.PROXIES(
        ("127.0.0.1", "::1"),
        NETWORKS,
        "The proxies whose forwarded headers are trusted; '*' is any.",
        environment="FORWARDED_ALLOW_IPS",
        doc="""Clients on a Unix socket are trusted, too. As long as nothing sets this, forwarded headers of any other
            client are passed to the application unread, as with gunicorn, and one warning says so. Once it is set, even
            to the default or to `""`, they are removed: set it wherever the application reads such headers itself. See
            [Behind a proxy](proxies.md).""",
        when_unset="forwarded headers of others are passed on",
    )
    # Empty, as in gunicorn: no header is safe to use before somebody has looked which ones the proxy overwrites.
    forwarded_headers: tuple[str, ...] = Section.PROXIES(
        (),
        Kind(
            parsers.forwarded_headers,
            "any of for, proto, host, port and prefix, separated by commas; or 'forwarded' alone",
            "LIST",
        ),
        "The headers of a trusted proxy that are used; e.g. for,proto,host.",
        doc="""`for`, `proto`, `host`, `port` and `prefix` are `X-Forwarded-For` and so on, `forwarded` is RFC
            7239's `Forwarded`. Name only what your proxy sets itself on every request: a client can send anything
            else itself. See [Behind a proxy](proxies.md).""",
    )
    # gunicorn's three. No flag: a dictionary has no good form on a command line, and gunicorn has none either.
    secure_scheme_headers: dict[str, str] = Section.PROXIES(
        {"X-FORWARDED-PROTOCOL": "ssl", "X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"},
        Kind(parsers.header_values, "a dictionary of header names and the values that mean https"),
        "The headers, and their values, by which a proxy says that its client used https.",
        "",
    )
    # Off: where it is on, a peer names the client's address, so it must be asked for.
    proxy_protocol: Literal["off", "v1", "v2", "auto"] = Section.PROXIES(
        "off",
        choice("off", "v1", "v2", "auto", metavar="[VERSION]", other=_AUTO_OR_OFF, arity="optional"),
        "Read HAProxy's PROXY protocol; without a value, 'auto'.",
        doc="""`v1` and `v2` require a header of that version from every peer in `proxy_allow_ips` (400 without
            it), `auto` takes either, or none. With TLS, the header comes before the handshake, in clear.""",
    )
    # The flag's name is gunicorn's, and so is the next one's.
    proxy_allow_ips: tuple[str, ...] = Section.PROXIES(
        ("127.0.0.1", "::1"),
        NETWORKS,
        "The proxies that may speak the PROXY protocol; '*' is any.",
        "--proxy-allow-from",
        doc="Clients on a Unix socket always may.",
    )
    protocol: Literal["http", "uwsgi"] = Section.PROXIES(
        "http",
        choice("http", "uwsgi", metavar="NAME"),
        "The listeners' protocol; uwsgi is for nginx's uwsgi_pass.",
        doc="See [Behind a proxy](proxies.md).",
    )
    # A uwsgi peer writes the environ itself, REMOTE_USER and HTTPS included, so that the loopback is the widest safe
    # default.
    uwsgi_allow_ips: tuple[str, ...] = Section.PROXIES(
        ("127.0.0.1", "::1"),
        NETWORKS,
        "The proxies that may speak uwsgi; '*' is any.",
        "--uwsgi-allow-from",
        doc="""Clients on a Unix socket always may. Connections of others are closed: everything in a uwsgi
            request is trusted.""",
    )
    # gunicorn's two. Only with an underscore can these names arrive as headers, which `header_map` drops otherwise.
    forwarder_headers: tuple[str, ...] = Section.PROXIES(
        ("SCRIPT_NAME", "PATH_INFO"),
        Kind(parsers.words, "header names separated by commas", "LIST"),
        "Headers with underscores that a trusted proxy may set.",
        doc="""`SCRIPT_NAME` must be a prefix of the request's path, which it is taken off; anything else is 400.
            Other names become `HTTP_...` as any header does, so `PATH_INFO` and `REMOTE_USER` are never set by one.
            `*` is any name. A proxy that lets underscores pass (HAProxy; nginx with `underscores_in_headers`) must
            remove what its clients send under these names; or leave the list empty. See
            [Behind a proxy](proxies.md).""",
    )
    # drop, as nginx does: refusing would break clients that send such a header in good faith.
    header_map: Literal["drop", "refuse", "dangerous"] = Section.PROXIES(
        "drop",
        choice("drop", "refuse", "dangerous", metavar="WHAT"),
        "How headers whose names have underscores are treated.",
        doc="""`X_Name` and `X-Name` are the same in the environ, so that a client can forge one by the other.
            `drop` leaves the first out, `refuse` answers 400, `dangerous` lets both in.""",
    )
    # SCRIPT_NAME of PEP 3333: empty for an application at the root.
    root_path: str = Section.PROXIES(
        "",
        Kind(parsers.root_path, "a path that begins with a slash; for example '/shop'", "PATH"),
        "The path that the application is mounted under (SCRIPT_NAME).",
        environment="SCRIPT_NAME",
        doc="""`SCRIPT_NAME` in `raw_env` or in the environment is its default, as with gunicorn.""",
        show_default="none",
    )
    # serve: a proxy may have taken the path off already. A SCRIPT_NAME of the environment is gunicorn's way, which
    # refuses.
    root_path_outside: Literal["serve", "refuse"] = Section.PROXIES(
        "serve",
        choice("serve", "refuse", metavar="WHAT"),
        "Serve a path outside of `root_path` as it is, or 'refuse' it with 400.",
        doc="""`refuse` is the default when `root_path` comes from `SCRIPT_NAME`, since gunicorn refuses such a request.
            `serve` is for a proxy that takes the path off before it asks. `readiness_path` is answered in any case.""",
    )
    # The name alone: a version helps only those who look for servers with a known fault.
    server_header: str = Section.PROXIES(
        "wsgiserv",
        Kind(parsers.server_header, "a text of printable ASCII; an empty one for no header", "TEXT"),
        "The Server header of responses; empty for none.",
        doc="""An application's own Server header goes before it. A configuration file that sets `gunicorn.SERVER`
            or `gunicorn.SERVER_SOFTWARE` sets this.""",
    )

    # Not a setting. The same values are the same configuration, whoever has written them.
    given: frozenset[str] = field(default=frozenset(), compare=False)


SETTINGS: dict[str, Setting] = declared(Settings)


def speaks_tls(settings: object) -> bool:
    """Tell whether the listeners of these settings, or of a part of them, speak TLS."""
    # The hook makes a context without `certfile`, too.
    return bool(getattr(settings, "certfile", None)) or getattr(settings, "ssl_context", None) is not None
