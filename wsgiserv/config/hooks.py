"""The server hooks: functions in a configuration file, with gunicorn's names and arguments.

Owns: the declaration of each hook.
Must not know: who calls a hook, what happens when one raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from wsgiserv.config.setting import setting
from wsgiserv.config.values import hook, post_request_hook

__all__ = ["Hook", "HookSettings"]

Hook: TypeAlias = Callable[..., Any] | None


def _hook(help: str, *arguments: str, doc: str = "") -> Hook:
    return setting(
        None,
        section="Hooks",
        parse=hook(*arguments),
        accepts=f"a function ({', '.join(arguments)}) or the dotted path of one",
        help=help,
        doc=f"Called as `({', '.join(arguments)})`. {doc}".strip(),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class HookSettings:
    """The hooks; each is None or a function that has been checked to take its arguments."""

    on_starting: Hook = _hook(
        "Called in the master before it starts.", "server", doc="If it raises, the server does not start."
    )
    on_reload: Hook = _hook("Called in the master when it reloads (SIGHUP).", "server")
    when_ready: Hook = _hook("Called in the master when the sockets listen.", "server")
    pre_fork: Hook = _hook(
        "Called in the master just before a worker is forked.",
        "server",
        "worker",
        doc="If it raises while the server starts, the server does not start.",
    )
    post_fork: Hook = _hook("Called in the worker just after it was forked.", "server", "worker")
    post_worker_init: Hook = _hook("Called in the worker when it has loaded the application.", "worker")
    worker_int: Hook = _hook("Called in the worker when it is stopped by SIGINT or SIGQUIT.", "worker")
    worker_abort: Hook = _hook(
        "Called in the worker when it is aborted (SIGABRT), usually after `timeout`.", "worker"
    )
    pre_exec: Hook = _hook("Called in the master just before it starts the next binary (SIGUSR2).", "server")
    pre_request: Hook = _hook("Called in the worker before each request.", "worker", "req")
    post_request: Hook = setting(
        None,
        section="Hooks",
        parse=post_request_hook,
        accepts="a function (worker, req, environ, resp), of which the last one or two may be left out",
        help="Called in the worker after each request.",
        doc="Called as `(worker, req, environ, resp)`; a function of 2 or 3 arguments gets the first ones.",
    )
    child_exit: Hook = _hook(
        "Called in the master when a worker has exited, and when a zygote has (age 0).", "server", "worker"
    )
    worker_exit: Hook = _hook("Called in the worker just before it exits.", "server", "worker")
    nworkers_changed: Hook = _hook(
        "Called in the master when the number of workers has changed.",
        "server",
        "new_value",
        "old_value",
        doc="The first time, `old_value` is None.",
    )
    on_exit: Hook = _hook("Called in the master just before it exits.", "server")
    ssl_context: Hook = _hook(
        "Called in the worker to make the TLS context.",
        "config",
        "default_ssl_context_factory",
        doc=(
            "Turns TLS on, without `certfile`, too. Returns an `ssl.SSLContext`; `default_ssl_context_factory()` makes "
            "the one that the other settings describe, to be adjusted; it needs `certfile`."
        ),
    )
