"""Requests that a worker makes to its own application before it says that it is ready (``warmup``).

Owns: the head of such a request, and the judgement on its answer.
Must not know: what becomes of a worker that fails.

The request goes the way of any other, through the parser and the gateway; only the connection is missing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from wsgiserv.callables import is_a
from wsgiserv.errors import ApplicationError, ProtocolError
from wsgiserv.http.head import HeadParser
from wsgiserv.wsgi.input import empty_input
from wsgiserv.wsgi.response import BodyTooLong, Response
from wsgiserv.wsgi.response_context import ResponseContext
from wsgiserv.wsgi.run import run_app

__all__ = ["WarmupContext", "warm_up"]

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
# A client connects to an address; these mean all of them.
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class WarmupContext(Protocol):
    """The parts of a `ServingContext` that a warm-up request uses."""

    @property
    def app(self) -> Callable[..., Any]: ...
    @property
    def gateway(self) -> ResponseContext: ...
    @property
    def id_prefix(self) -> str: ...
    @property
    def log(self) -> logging.Logger: ...
    @property
    def parser(self) -> HeadParser: ...
    @property
    def serial(self) -> Iterator[int]: ...


class _Nowhere:
    """Takes a response that nobody reads."""

    def set_streaming(self, streaming: bool) -> None:
        """Nothing waits here."""

    def send(self, data: bytes) -> None:
        """Drop ``data``."""

    def send_pair(self, head: bytes, body: bytes) -> None:
        """Drop both."""

    def send_file(self, fd: int, offset: int, count: int) -> None:
        """Drop the file."""


def warm_up(context: WarmupContext, paths: Sequence[str], base: dict[str, Any]) -> None:
    """Call the application with a GET of each path, in order. An answer of 400 to 499 is a warning in the log.

    Args:
        context: what the worker's connections share.
        paths: paths with or without a query, such as ``/search?q=a``, as clients send them.
        base: the base environ of the listener that the requests seem to come to.

    Raises:
        ApplicationError: one of them raised, or answered with a status of 500 and above.
    """
    host = host_of(base)
    for path in paths:
        response = Response(_Nowhere(), context.gateway, True, False, True)
        try:
            environ = _environ(context, path, host, base)
        except ProtocolError as error:
            raise ApplicationError(
                f"the warm-up request of {path} (warmup) is not a valid request: {error}", ""
            ) from None
        environ["wsgi.early_hints"] = response.early_hints
        failure = run_app(context.app, environ, response)
        if failure is not None and not is_a(failure, (Exception, SystemExit)):
            raise failure
        if failure is not None and not is_a(failure, BodyTooLong):
            from wsgiserv.app import diagnostics as appadvice

            what = appadvice.in_words(failure)  # also of one whose str() raises
            text = appadvice.traceback_of(failure)
            raise ApplicationError(f"the warm-up request of {path} (warmup) raised {what}", text)
        if response.code >= 500:
            raise ApplicationError(
                f"the warm-up request of {path} (warmup) was answered with {response.status}", ""
            )
        if response.code >= 400:
            context.log.warning(
                "the warm-up request of %s (warmup) was answered with %s: it has warmed little",
                path,
                response.status,
            )


def host_of(base: dict[str, Any]) -> str:
    """Return the Host that a client of this machine sends to the listener of a base environ."""
    host = base["SERVER_NAME"].partition("%")[0]  # RFC 9110 §7.2: no zone, which means something here only
    host = _WILDCARDS.get(host, host)
    if ":" in host:
        host = f"[{host}]"
    port = base["SERVER_PORT"]
    return host if port == _DEFAULT_PORTS[base["wsgi.url_scheme"]] else f"{host}:{port}"


def _environ(context: WarmupContext, path: str, host: str, base: dict[str, Any]) -> dict[str, Any]:
    """Return the environ of a GET. Raises ProtocolError for a path that no client could send."""
    block = context.parser.header_block(f"Host: {host}\r\nUser-Agent: wsgiserv-warmup\r\n".encode())
    # What is not visible ASCII, as clients send it.
    target = "".join(chr(byte) if 0x21 <= byte <= 0x7E else f"%{byte:02X}" for byte in os.fsencode(path))
    line = context.parser.request_line(f"GET {target} HTTP/1.1".encode("ascii"))
    return {
        **base,
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "0",
        **block.environ,
        **line.environ,
        "wsgi.input": empty_input(),
        "wsgiserv.request_id": f"{context.id_prefix}{next(context.serial):016x}",
        "wsgiserv.warmup": True,
    }
