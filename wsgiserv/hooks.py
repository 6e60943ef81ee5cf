"""Calling the functions of people's configuration files.

Owns: what happens when a hook raises.
Must not know: which hooks there are, who calls which when.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from wsgiserv.errors import BootError
from wsgiserv.process import leave_if_child
from wsgiserv.tracebacks import describe_error
from wsgiserv.user_code import is_a

__all__ = ["call_hook", "call_hook_or_stop"]


def call_hook(log: logging.Logger, name: str, hook: Callable[..., Any] | None, *arguments: Any) -> bool:
    """Call ``hook`` with ``arguments``; return whether it went well.

    Args:
        log: the error log.
        name: the hook's setting, for the log.
        hook: the function, or None: then nothing happens.

    A hook that raises is logged with its name and traceback and does no harm. That goes for ``sys.exit()``,
    too: a hook cannot take a server down that serves. Called in the master and in workers.
    """
    if hook is None:
        return True
    failure: BaseException | None = None
    try:
        hook(*arguments)
    except BaseException as error:
        failure = error
    leave_if_child(failure)
    if failure is None:
        return True
    if not is_a(failure, (Exception, SystemExit)):
        raise failure
    # Outside of the handler: the log's handlers and filters may be people's code, too.
    log.error("the hook %s raised %s; the server goes on", name, describe_error(failure), exc_info=failure)
    return False


def call_hook_or_stop(
    log: logging.Logger, name: str, hook: Callable[..., Any] | None, *arguments: Any
) -> None:
    """Call ``hook`` as `call_hook` does, but raise BootError when it raises.

    For the hooks that may forbid the start: on_starting, and pre_fork before anything is ready.
    """
    if hook is None:
        return
    failure: BaseException | None = None
    try:
        hook(*arguments)
    except BaseException as error:
        failure = error
    leave_if_child(failure)
    if failure is None:
        return
    if not is_a(failure, (Exception, SystemExit)):
        raise failure
    log.error("the hook %s raised %s", name, describe_error(failure), exc_info=failure)
    raise BootError(
        f"the hook {name} raised {describe_error(failure)}, so the server does not start. "
        f"Mend {name} in the configuration file (its traceback is in the error log), or take it out."
    ) from failure
