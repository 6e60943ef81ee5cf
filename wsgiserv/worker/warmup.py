"""Makes requests to the application before its worker is ready (``warmup``).

Such a request takes the way of any other, through the parser and the gateway, but has no connection.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from wsgiserv.errors import ApplicationError, ProtocolError
from wsgiserv.net.serving_context import ServingContext
from wsgiserv.tracebacks import describe_error, format_users_error
from wsgiserv.user_code import is_a
from wsgiserv.wsgi.input import empty_input
from wsgiserv.wsgi.response import BodyTooLong, Response
from wsgiserv.wsgi.run import run_app

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
# A listener on these has all addresses; a client needs one to connect to.
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class _NullSink:
    """Drops a response."""

    def _drop(self, *_: object) -> None:
        """Nothing waits for it."""

    set_streaming = send = send_last = send_pair = send_file = give_up = _drop


def warm_up(context: ServingContext, paths: Sequence[str], base: dict[str, Any]) -> None:
    """Call the application with a GET of each path, in order; warn of answers from 400 to 499.

    Args:
        context: shared by the worker's connections.
        paths: paths with or without a query, such as ``/search?q=a``, as clients send them.
        base: the base environ of a listener: the requests seem to come from there.

    Raises:
        ApplicationError: the application raised, or answered with a status of 500 or above.
    """
    host = _host_of(base)
    for path in paths:
        response = Response(_NullSink(), context.gateway, True, False, True)
        try:
            environ = _environ(context, path, host, base)
        except ProtocolError as error:
            raise ApplicationError(f"WS1152 warmup: {path} is not a valid request target: {error}") from None
        environ["wsgi.early_hints"] = response.early_hints
        failure = run_app(context.app, environ, response)
        # A signal's exception: the application has not failed, the process is to end.
        if failure is not None and not is_a(failure, (Exception, SystemExit)):
            raise failure
        # After `BodyTooLong` the response is complete, and a client would have got all that was promised.
        if failure is not None and not is_a(failure, BodyTooLong):
            what = f"WS1153 warmup: the warm-up request of {path} raised {describe_error(failure)}"
            raise ApplicationError(what, format_users_error(failure))
        if response.code >= 500:
            raise ApplicationError(f"WS1154 warmup: the warm-up request of {path} was answered with {response.status}")
        if response.code >= 400:
            context.log.warning(
                "WS1155 warmup: the warm-up request of %s was answered with %s: it has warmed little",
                path,
                response.status,
            )


def _host_of(base: dict[str, Any]) -> str:
    """Return the Host of a local client's request to the listener of a base environ."""
    host = base["SERVER_NAME"].partition("%")[0]  # RFC 9110 §7.2: no zone, which means something here only
    host = _WILDCARDS.get(host, host)
    if ":" in host:
        host = f"[{host}]"
    port = base["SERVER_PORT"]
    return host if port == _DEFAULT_PORTS[base["wsgi.url_scheme"]] else f"{host}:{port}"


def _environ(context: ServingContext, path: str, host: str, base: dict[str, Any]) -> dict[str, Any]:
    """Return the environ of a GET. Raises ProtocolError for an impossible path."""
    block = context.parser.header_block(f"Host: {host}\r\nUser-Agent: wsgiserv-warmup\r\n".encode())
    # Clients escape all but visible ASCII.
    target = "".join(chr(byte) if 0x21 <= byte <= 0x7E else f"%{byte:02X}" for byte in os.fsencode(path))
    line = context.parser.request_line(f"GET {target} HTTP/1.1".encode("ascii"))
    return {
        **base,
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "0",
        **block.environ,
        **line.environ,
        "wsgi.input": empty_input(),
        "wsgiserv.request_id": next(context.request_ids),
        "wsgiserv.warmup": True,
    }
