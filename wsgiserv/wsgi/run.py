"""Calls the application and closes its result (PEP 3333)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from wsgiserv.process import SERVER_PROCESS, leave, leave_if_child
from wsgiserv.user_code import is_a
from wsgiserv.wsgi.filewrapper import FileWrapper
from wsgiserv.wsgi.input import BodyError
from wsgiserv.wsgi.response import BodyTooLong, ClientGone, Response


def run_app(app: Callable[..., Iterable[bytes]], environ: dict[str, Any], response: Response) -> BaseException | None:
    """Call the application, send its result, and call ``close()`` of the result exactly once.

    Args:
        app: the WSGI application.
        environ: the request's environ.
        response: started by the application; finished or failed afterwards.

    Returns:
        The exception raised by the application (the client has got a 500, or its connection is marked to be closed),
        `ClientGone` when the client had left, None when all went well. No exception of the application, not even
        ``SystemExit``, leaves this function.
    """
    # No code of the application, not even a filter of its log, runs inside an except block here: it would find our
    # exception in sys.exc_info(), and as the context of its own.
    result: Any = None
    failure: BaseException | None = None
    try:
        result = app(environ, response.start_response)
        if not SERVER_PROCESS[0]:
            leave()  # the application has forked, and this is the child
        kind = type(result)
        # One block in a list or tuple: its length is known, and no second block can follow. Neither has a close().
        if (kind is list or kind is tuple) and len(result) == 1:
            response.whole(result[0])
            return None
        if kind is bytes or kind is str:
            # Iterated, bytes are integers and a str is one character after the other: a common mistake gets its name.
            text = f"the application returned {kind.__name__}; return a list of bytes, for example [body]"
            raise TypeError(text)
        if kind is not FileWrapper or not response.file(result):
            response.stream(result)
    except BaseException as error:
        failure = error
    if failure is not None:
        _failed(response, failure)
    if result is not None:
        failed_close = _close(result)
        if failed_close is not None:
            _come_back(failed_close)
            if not is_a(failed_close, BodyError):  # the client's fault: reported with the request
                response.context.log.error(
                    "WS1601 close() of the application's result raised an exception", exc_info=failed_close
                )
            failure = failure or failed_close
    return failure


def _close(result: Any) -> BaseException | None:
    """Call ``close()`` of an application's result where it has one. Returns the exception from it."""
    try:
        close = getattr(result, "close", None)
        if close is not None:
            close()
            leave_if_child()
    except BaseException as error:
        return error
    return None


def _failed(response: Response, error: BaseException) -> None:
    """End a response whose application raised ``error``."""
    _come_back(error)
    if is_a(error, BodyTooLong):
        return  # the client has its whole response
    try:
        if not is_a(error, ClientGone):
            response.fail(error)
            return
    except ClientGone:
        pass
    response.close_connection()


def _come_back(error: BaseException) -> None:
    """Drop our own frames from the beginning of a traceback; end the process if the application has forked it."""
    first = error.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename in _OWN_FILES:
        first = first.tb_next
    error.__traceback__ = first or error.__traceback__
    leave_if_child(error)


_OWN_FILES: Final = (run_app.__code__.co_filename, Response.stream.__code__.co_filename)
