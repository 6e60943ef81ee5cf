"""Calls the hooks of a configuration file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from wsgiserv.errors import BootError
from wsgiserv.process import leave_if_child
from wsgiserv.tracebacks import describe_error
from wsgiserv.user_code import is_a


def call_hook(log: logging.Logger, name: str, hook: Callable[..., Any] | None, *arguments: Any) -> bool:
    """Call ``hook`` with ``arguments``; log its exception, even SystemExit. Called in the master and in workers.

    Args:
        log: the error log.
        name: the hook's setting.
        hook: the function, or None: then nothing happens.

    Returns:
        False if it has raised.
    """
    failure = _call(hook, arguments)
    if failure is not None:
        # Outside of the handler: the log's handlers and filters may be the application's, too.
        what = describe_error(failure)
        log.error("WS1100 the hook %s raised %s; the server goes on", name, what, exc_info=failure)
    return failure is None


def call_hook_or_stop(log: logging.Logger, name: str, hook: Callable[..., Any] | None, *arguments: Any) -> None:
    """Call ``hook`` as `call_hook` does, but raise BootError if it raises.

    For the hooks that may forbid the start: on_starting, and pre_fork before anything is ready.
    """
    failure = _call(hook, arguments)
    if failure is not None:
        what = describe_error(failure)
        log.error("WS1101 the hook %s raised %s", name, what, exc_info=failure)
        raise BootError(
            f"the hook {name} raised {what}, so the server does not start. "
            f"Correct {name} in the configuration file (its traceback is in the error log), or remove it."
        ) from failure


def _call(hook: Callable[..., Any] | None, arguments: tuple[Any, ...]) -> BaseException | None:
    """Return the exception of a hook; raise a KeyboardInterrupt or the like."""
    failure: BaseException | None = None
    if hook is not None:
        try:
            hook(*arguments)
        except BaseException as error:
            failure = error
        leave_if_child(failure)  # the hook has forked, and its child has returned
    # A signal's exception is not the hook's own. SystemExit is: a hook that calls sys.exit() does not stop the
    # server.
    if failure is not None and not is_a(failure, (Exception, SystemExit)):
        raise failure
    return failure
