"""Makes the parts of the WSGI environ that do not come from the header block.

A request's environ is one merge in C of four layers: base (per listener), connection (the peer), header
block (cached under its bytes), request line (cached too), and a handful of keys of the request itself.
"""

from __future__ import annotations

from typing import Any

from wsgiserv import __version__
from wsgiserv.errors import ProtocolError
from wsgiserv.http.head import HeaderBlock, RequestLine
from wsgiserv.wsgi.filewrapper import FileWrapper
from wsgiserv.wsgi.forwarded import Forwarding, mount


def base_environ(
    *, server_name: str, server_port: str, url_scheme: str, errors: object, multithread: bool, multiprocess: bool
) -> dict[str, Any]:
    """Return the keys that all requests of one listener share (PEP 3333, "environ Variables").

    Args:
        server_name, server_port, url_scheme: of the listener.
        errors: ``wsgi.errors``.
        multithread, multiprocess: whether other threads or processes may call the application at the same time.
    """
    return {
        "SERVER_NAME": server_name,
        "SERVER_PORT": server_port,
        "SERVER_SOFTWARE": f"wsgiserv/{__version__}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": url_scheme,
        "wsgi.errors": errors,
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": multiprocess,
        "wsgi.run_once": False,
        # The input ends where the body ends, whatever CONTENT_LENGTH says (Werkzeug and Flask read it so).
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
    }


def adjust(
    environ: dict[str, Any],
    line: RequestLine,
    block: HeaderBlock,
    trusted: bool,
    body_length: int,
    forwarding: Forwarding | None = None,
) -> None:
    """Change the environ of an unusual request, in place.

    Args:
        environ: the merged environ.
        line, block: the request's head.
        trusted: whether the peer is in ``forwarded_allow_ips``.
        body_length: decoded length of a chunked body in bytes, -1 when the body was not chunked.
        forwarding: reads a trusted peer's X-Forwarded-* and Forwarded, when they are asked for.

    Raises:
        ProtocolError: 400 when a trusted proxy's headers contradict each other, or its SCRIPT_NAME is no prefix of
            the path.
    """
    if line.authority is not None:
        environ["HTTP_HOST"] = line.authority  # RFC 9112 §3.2.2: it overrides Host
    if body_length >= 0:
        # RFC 9112 §7.1.3: a decoded message has a Content-Length and no chunked coding any more.
        # Django, for one, reads a body by CONTENT_LENGTH alone.
        environ["CONTENT_LENGTH"] = str(body_length)
        environ.pop("HTTP_TRANSFER_ENCODING", None)
    # What it claims about a client stays out of the rest; the caller knows whether the application sees it.
    if not trusted:
        return
    # One header says https, the other does not: secure cookies and redirects would depend on the reader.
    if block.contradictory:
        raise ProtocolError(400, "contradictory scheme headers")
    if block.secure:
        environ["wsgi.url_scheme"] = "https"
    for name, value in block.forwarder.items():
        _take_forwarder_header(environ, name, value)
    if forwarding is not None and block.claims:
        forwarding.apply(environ)


def _take_forwarder_header(environ: dict[str, Any], name: str, value: str) -> None:
    """Put one of ``forwarder_headers`` into the environ. Raises ProtocolError."""
    # A client's header gets here through a proxy that lets underscores pass. So no name ever becomes a CGI key: with
    # PATH_INFO the client would choose a path that the proxy's rules have not seen, with REMOTE_USER its identity.
    # SCRIPT_NAME can only move the border between the two parts of the path.
    if name == "SCRIPT_NAME":
        mount(environ, value)
        return
    key = f"HTTP_{name.replace('-', '_')}"
    if key in environ:  # one of the two is the client's, and nothing tells which
        raise ProtocolError(400, "a forwarder header is there with underscores and with dashes")
    environ[key] = value


def refused_environ(line: RequestLine | None, block: HeaderBlock | None, peer: dict[str, str]) -> dict[str, Any]:
    """Return the known part of a refused request's environ, for the access log.

    Args:
        line, block: the request's head; None for a part that has not come, or is malformed.
        peer: the keys of the client.
    """
    return {**peer, **(line.environ if line else {}), **(block.environ if block else {})}
