"""Calls the hooks of a configuration file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from wsgiserv.errors import ApplicationError, BootError, ExitStatus, WsgiservError
from wsgiserv.process import leave_if_child
from wsgiserv.tracebacks import describe_error
from wsgiserv.user_code import is_a


class HaltServer(SystemExit):
    """Raised by ``server.halt()``: the hook ends here, and the server stops.

    Attributes:
        reason: why, for the log; may be None.
        exit_status: the status that the server exits with.
    """

    def __init__(self, reason: str | None, exit_status: int) -> None:
        super().__init__(exit_status)
        self.reason = reason
        self.exit_status = exit_status


class StoppedByHook(WsgiservError):
    """A hook ends the server: ``sys.exit()`` at the start, or ``server.halt()``.

    Args:
        message: which hook, and why.
        exit_status: the status that the server exits with.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status  # type: ignore[assignment]  # any number of the hook's


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
    report_failure(log, name, failure)
    return failure is None


def report_failure(log: logging.Logger, name: str, failure: BaseException | None) -> None:
    """Log the exception of a hook that does not stop the server, if there is one."""
    if failure is not None and not is_a(failure, HaltServer):  # the server has noted that one
        # Outside of the handler: the log's handlers and filters may be the application's, too.
        what = describe_error(failure)
        log.error("WS1100 the hook %s raised %s; the server goes on", name, what, exc_info=failure)


def failure_of(hook: Callable[..., Any] | None, *arguments: Any) -> BaseException | None:
    """Call ``hook`` and return its exception, SystemExit too; the caller reports it. Raises a KeyboardInterrupt."""
    return _call(hook, arguments)


def call_hook_or_stop(log: logging.Logger, name: str, hook: Callable[..., Any] | None, *arguments: Any) -> None:
    """Call ``hook`` as `call_hook` does, but raise if it raises: BootError, or StoppedByHook for ``sys.exit()``.

    For the hooks that may forbid the start: on_starting, when_ready, and pre_fork before anything is ready.
    """
    failure = _call(hook, arguments)
    if failure is None:
        return
    if is_a(failure, SystemExit):
        raise _stopped(name, failure) from failure
    what = describe_error(failure)
    log.error("WS1101 the hook %s raised %s", name, what, exc_info=failure)
    raise BootError(
        f"the hook {name} raised {what}, so the server does not start. "
        f"Correct {name} in the configuration file (its traceback is in the error log), or remove it."
    ) from failure


def call_hook_or_fail(log: logging.Logger, name: str, hook: Callable[..., Any] | None, *arguments: Any) -> None:
    """Call ``hook`` as `call_hook` does, but raise BootError if it raises: its worker cannot boot.

    For post_fork and post_worker_init. An ApplicationError, of ``worker.app.wsgi()``, is raised as it is.
    """
    failure = _call(hook, arguments)
    if failure is None:
        return
    if is_a(failure, ApplicationError):
        raise failure
    what = describe_error(failure)
    log.error("WS1103 the hook %s raised %s: the worker cannot boot", name, what, exc_info=failure)
    raise BootError(
        f"the hook {name} raised {what}. Correct {name} in the configuration file (its traceback is in the error log), "
        "or remove it."
    ) from failure


def _stopped(name: str, failure: SystemExit) -> StoppedByHook:
    """Return the error for a hook that has ended the start."""
    if is_a(failure, HaltServer):
        reason, status = failure.reason, failure.exit_status
        return StoppedByHook(f"the hook {name} has called server.halt(){f': {reason}' if reason else ''}", status)
    # As the interpreter does: nothing is 0, a text is printed, with status 1.
    code = failure.code
    status = ExitStatus.OK if code is None else code if isinstance(code, int) else ExitStatus.FAILURE
    text = f": {code}" if code is not None and not isinstance(code, int) else ""
    return StoppedByHook(f"the hook {name} has called sys.exit(){text}", status & 0xFF)


def _call(hook: Callable[..., Any] | None, arguments: tuple[Any, ...]) -> BaseException | None:
    """Return the exception of a hook; raise a KeyboardInterrupt or the like."""
    failure: BaseException | None = None
    if hook is not None:
        try:
            hook(*arguments)
        except BaseException as error:
            failure = error
        leave_if_child(failure)  # the hook has forked, and its child has returned
    # A signal's exception is not the hook's own. SystemExit is: a hook that calls sys.exit() does not stop a server
    # that serves.
    if failure is not None and not is_a(failure, (Exception, SystemExit)):
        raise failure
    return failure
