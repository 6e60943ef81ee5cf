"""Lists settings with another default or another effect than in gunicorn: for ``migrate`` and ``--check-config``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from wsgiserv.config.worker_class import CLASS_PATHS, resolve


class OtherDefault(NamedTuple):
    """A setting with another default than gunicorn's.

    Attributes:
        name: the setting.
        theirs: gunicorn's default, in words.
        ours: wsgiserv's, in words.
        why: the reason.
        value: the value that is as in gunicorn, as Python source; empty when it depends on the host.
        with_user: whether it matters only with `user`.
    """

    name: str
    theirs: str
    ours: str
    why: str
    value: str
    with_user: bool = False


OTHER_DEFAULTS = (
    OtherDefault(
        "keepalive",
        "2 s",
        "75 s",
        "an idle connection holds no worker here, and a proxy's own keep-alive is usually longer than 2 s",
        "2",
    ),
    OtherDefault("limit_request_line", "4094", "8190", "tracking parameters and signed URLs outgrow 4 KiB", "4094"),
    OtherDefault("limit_request_body", "no limit", "1 GiB", "large bodies go to a file, and a disk is finite", "0"),
    OtherDefault("header_timeout", "none", "10 s", "a slow client costs no worker, but not for ever", "0"),
    OtherDefault("body_timeout", "none", "30 s", "likewise: the longest pause within a body", "0"),
    OtherDefault("send_timeout", "none", "60 s", "likewise: how long a client may take nothing of a response", "0"),
    OtherDefault(
        "group",
        "root's group stays",
        "the primary group of `user`",
        "a worker of `www-data` has no business in root's group",
        "'root'",
        with_user=True,
    ),
    OtherDefault(
        "initgroups", "off", "on", "files that are shared through a group can be opened", "False", with_user=True
    ),
)


class OtherEffect(NamedTuple):
    """A setting with another effect than in gunicorn.

    Attributes:
        name: the setting, by our name.
        text: the difference: completes "differs from gunicorn: ".
        applies: tells of a parsed value whether there is a difference.
        if_unknown: whether it is worth a line where the value cannot be told.
    """

    name: str
    text: str
    applies: Callable[[Any], object] = bool
    if_unknown: bool = False


def _is_own_class(value: object) -> bool:
    return resolve(cast("str | type[Any]", value), 1) not in CLASS_PATHS


def _is_statsd(value: object) -> bool:
    return value == "gunicorn.instrument.statsd.Statsd"


OTHER_EFFECTS = (
    OtherEffect(
        "forwarded_allow_ips",
        "now that it is set, X-Forwarded-*, Forwarded and X-Real-IP of any other peer are removed (gunicorn passes "
        "them on). Name each proxy that connects, by its address or network",
        lambda value: "*" not in value,
        if_unknown=True,
    ),
    OtherEffect(
        "worker_class",
        "timeout also ends a worker when all of its threads have been in their calls for so long without sending "
        "anything (gunicorn's gthread lets it live). Raise timeout if that is rightful",
        lambda value: value == "threads",
    ),
    OtherEffect(
        "worker_class",
        "a class built on gunicorn's sync, gthread or gevent worker runs on wsgiserv's; one that overrides run, "
        "handle, handle_request or accept is refused",
        _is_own_class,
    ),
    OtherEffect("logger_class", "nothing is sent to statsd. Count from the access log", _is_statsd),
    OtherEffect(
        "logger_class",
        "a class derived from gunicorn's Logger is called as there, which costs more for each request than the "
        "server's own logs",
        lambda value: value is not None and not _is_statsd(value),
        if_unknown=True,
    ),
    OtherEffect(
        "umask",
        "it is the mask of the workers, too (gunicorn has it for its own files). Text is octal: '77' is 0o77",
        if_unknown=True,
    ),
    OtherEffect(
        "user",
        "as root, HOME, USER and LOGNAME of the workers are this user's, unless raw_env sets them",
        lambda value: value != os.geteuid(),
        if_unknown=True,
    ),
    OtherEffect(
        "preload_app",
        "the application is loaded in a process beside the workers (the zygote), so that HUP loads new code. If a "
        "program counts the master's children, set preload_in = 'master'",
        if_unknown=True,
    ),
    OtherEffect("root_path", "it counts for WSGI applications (gunicorn has it for ASGI alone)", if_unknown=True),
    OtherEffect(
        "raw_env",
        "a path outside SCRIPT_NAME is answered with 400 (gunicorn: 500)",
        lambda value: any(pair.startswith("SCRIPT_NAME=") for pair in value),
    ),
    OtherEffect(
        "protocol",
        "REMOTE_ADDR is the client that nginx names (gunicorn: nginx's own address)",
        lambda value: value == "uwsgi",
    ),
    OtherEffect(
        "proxy_protocol",
        "a peer in proxy_allow_ips that sends no header gets 400 (gunicorn serves it). 'auto' serves it here",
        lambda value: value in ("v1", "v2"),
    ),
    OtherEffect(
        "forwarder_headers",
        "SCRIPT_NAME must be a prefix of the path as whole segments, else 400 (gunicorn takes any beginning)",
        lambda value: any(name.upper() in ("SCRIPT_NAME", "*") for name in value),
    ),
    OtherEffect(
        "worker_tmp_dir", "the directory is checked, and not used: the heartbeat is in shared memory", if_unknown=True
    ),
    OtherEffect("limit_request_line", "0 is the largest, 1 MiB (gunicorn: no limit)", lambda value: value == 1 << 20),
    OtherEffect(
        "ssl_context", "it turns TLS on, without certfile, too (gunicorn does not call it then)", if_unknown=True
    ),
)


# In place of a value that cannot be told.
UNKNOWN = object()


def effects_of(name: str, value: object) -> list[str]:
    """Return the differences of a setting with this parsed value, which may be `UNKNOWN`."""
    entries = [each for each in OTHER_EFFECTS if each.name == name]
    return [each.text for each in entries if (each.if_unknown if value is UNKNOWN else each.applies(value))]
