"""Speaks TLS on a client's socket without ever waiting; the ``SSL_*`` keys of the environ.

Imported only where `certfile` is set. As in `tls_context`, nothing is taken ``from ssl``.
"""

from __future__ import annotations

import ssl
from _socket import MSG_DONTWAIT, MSG_PEEK, SHUT_RD, SHUT_RDWR, SHUT_WR, SO_LINGER, SOL_SOCKET
from _socket import socket as RawSocket
from _thread import LockType, allocate_lock
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from wsgiserv.errors import ProtocolError
from wsgiserv.net.client_socket import WrappedSocket
from wsgiserv.net.tls_context import reason_of

_FRESH: Final = 0  # no byte has come
_HANDSHAKE: Final = 1
_OPEN: Final = 2
_ENDED: Final = 3  # the client has said that it will send no more; it still reads
_PLAIN: Final = 4  # the client does not speak TLS
_SHUT: Final = 5  # nothing more is sent; what comes is discarded

# RFC 8446 §5.1: the plain text of a record, and so what OpenSSL may hold of an incomplete one.
_RECORD_BYTES: Final = 16384
# So much is encrypted before the socket is asked to take it. Some records at once save system calls;
# what it does not take is held in memory.
_PIECE_BYTES: Final = 4 * _RECORD_BYTES
# One call sends at most this much, so that a fast client cannot hold the loop.
_MOST_PER_SEND: Final = 16 * _PIECE_BYTES
# What TLS itself owes a client (alerts, key updates): one that takes nothing, but makes us owe, must go.
_MOST_OWED_TO_TLS: Final = 65536
# A method (RFC 9110 §9.1), or the empty line that is forgiven before one. A TLS record starts with 22.
_HTTP_STARTS: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\r\n")


@dataclass(slots=True, eq=False, repr=False)
class TLSSocket(WrappedSocket):
    """A client's socket, for the connection like a `_socket.socket` in non-blocking mode.

    Args:
        context: the worker's context.
        raw: the accepted socket; owned from now on.
        environ: the client's part of the environ. The keys of TLS are added when the handshake is done:
            HTTPS, SSL_PROTOCOL, SSL_CIPHER, SSL_CLIENT_VERIFY and, of a client's certificate,
            SSL_CLIENT_S_DN, SSL_CLIENT_I_DN, SSL_CLIENT_M_SERIAL, SSL_CLIENT_V_START, SSL_CLIENT_V_END and
            SSL_CLIENT_CERT (Apache's names, mod_ssl).

    One thread may read a streamed body while another sends queued data.
    """

    # OpenSSL's object is one thread's at a time, so each call holds a lock. OpenSSL sees memory only, so all it has
    # decrypted is returned at once, and a poller that watches the raw socket misses nothing.

    _context: ssl.SSLContext
    _raw: RawSocket
    _environ: dict[str, str]
    _lock: LockType = field(init=False, default_factory=allocate_lock)
    _state: int = field(init=False, default=_FRESH)
    _unsent: bytes | memoryview = field(init=False, default=b"")  # encrypted, and not taken by the raw socket yet
    _committed: int = field(init=False, default=0)  # bytes that `send` has encrypted, but not reported as sent yet
    _object: ssl.SSLObject = field(init=False)
    _incoming: ssl.MemoryBIO = field(init=False)
    _outgoing: ssl.MemoryBIO = field(init=False)

    # ---- reading -----------------------------------------------------------------------------------

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return decrypted bytes, ``b""`` at the end of the client's data; continue the handshake.

        Args:
            size: the most bytes, at least 32 KiB.
            flags: MSG_PEEK returns bytes as they came, to see whether there are any.

        Raises:
            BlockingIOError: nothing to return yet.
            ProtocolError: the client speaks plain HTTP; so does this socket from now on.
            ConnectionError: TLS failed; the client has been told, as far as it listens.
        """
        with self._lock:
            state = self._state
            if state >= _PLAIN or flags & MSG_PEEK:
                # Behind our own end only the client's end is of interest: nothing is decrypted any more.
                return self._raw.recv(size, flags | MSG_DONTWAIT)
            if state == _ENDED:
                return b""
            data = self._raw.recv(size - _RECORD_BYTES, flags | MSG_DONTWAIT)
            if not data:
                return b""  # without a word of TLS (a "ragged" end): HTTP's framing tells whether something lacks
            if state == _FRESH:
                self._begin(data)
            self._incoming.write(data)
            try:
                if state <= _HANDSHAKE:
                    self._object.do_handshake()
                    self._state = _OPEN
                    self._environ.update(_tls_environ(self._object))
                data = self._decrypt(size)
            except ssl.SSLWantReadError:
                data = b""
            except (ssl.SSLError, ValueError) as error:  # ValueError: a certificate that Python cannot decode
                raise self._break(error) from None
            if self._outgoing.pending:
                self._flush()
                if self._outgoing.pending > _MOST_OWED_TO_TLS:
                    raise ConnectionError("TLS failed: the client reads nothing of what TLS owes it")
            if not data and self._state != _ENDED:
                raise BlockingIOError("no whole TLS record is here yet")
            return data

    def _begin(self, data: bytes) -> None:
        if data[0] in _HTTP_STARTS:
            self._state = _PLAIN
            raise ProtocolError(400, "plain HTTP was sent to an HTTPS port; use https:// in the URL", repeats=True)
        self._state = _HANDSHAKE
        # Not before the first byte: a client that connects and stays silent costs no TLS state.
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def _decrypt(self, size: int) -> bytes:
        # All the plain text that is here: no poller would report bytes left inside OpenSSL.
        obj, incoming = self._object, self._incoming
        parts: list[bytes] = []
        try:
            while True:
                part = obj.read(size)  # at most one record
                if not part:
                    self._end()
                    break
                parts.append(part)
                if not (incoming.pending or obj.pending()):
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._end()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _end(self) -> None:
        # The client's close_notify has come, perhaps behind data.
        self._state = _ENDED
        # From now on the raw socket is readable, at its end: that is how a poller comes to know.
        with suppress(OSError):
            self._raw.shutdown(SHUT_RD)

    def _break(self, error: Exception) -> ConnectionError:
        what = "handshake" if self._state == _HANDSHAKE else "connection"
        with suppress(OSError):
            self._flush()  # the alert
        self._state = _SHUT
        return ConnectionError(f"TLS {what} failed: {reason_of(error)}")

    # ---- writing -----------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview, flags: int = 0) -> int:
        """Send the beginning of ``data`` and return how many bytes.

        After BlockingIOError, or a number less than the size, the next call must continue with the very bytes not sent
        yet, in pieces of any size: some are encrypted already.

        Raises:
            BlockingIOError: the raw socket takes nothing.
            OSError: the connection is broken.
        """
        with self._lock:
            state = self._state
            if state == _PLAIN:
                return self._raw.send(data, flags | MSG_DONTWAIT)
            if state != _OPEN and state != _ENDED:
                raise ConnectionError("the TLS connection is not open")
            taken = self._flush()
            view = memoryview(data)
            if self._unsent:
                return self._progress(taken, min(self._committed, len(view)))
            done = min(self._committed, len(view))
            self._committed -= done
            most = min(len(view), _MOST_PER_SEND)
            while done < most:
                end = min(done + _PIECE_BYTES, len(view))
                self._encrypt(view[done:end])
                self._committed = end - done
                taken = self._flush()
                if self._unsent:
                    return done + self._progress(taken, end - done, block=not done)
                self._committed = 0
                done = end
            return done

    def _progress(self, taken: int, most: int, block: bool = True) -> int:
        """Return how many encrypted bytes to report as sent, while the kernel has not taken all of them."""
        # A slow client must not be taken for one that has stopped reading. But the last byte is reported only when the
        # kernel has all: after that nothing would call again.
        gone = max(0, min(taken, most, self._committed - 1))
        if not gone and block:
            raise BlockingIOError("the socket takes nothing now")
        self._committed -= gone
        return gone

    def sendmsg(self, buffers: Sequence[bytes | memoryview], ancillary: tuple[()] = (), flags: int = 0) -> int:
        """Send the beginning of ``buffers`` as if they were one; see `send`."""
        # One piece at most is copied: a head and a small body share a record, a large body stays where it is.
        left = _PIECE_BYTES
        parts: list[memoryview] = []
        for buffer in buffers:
            part = memoryview(buffer)[:left]
            parts.append(part)
            left -= len(part)
        return self.send(b"".join(parts), flags)

    def _encrypt(self, view: memoryview) -> None:
        write = self._object.write
        try:
            while view:
                view = view[write(view) :]  # takes one record at a time
        except ssl.SSLError as error:
            raise self._break(error) from None

    def _flush(self) -> int:
        """Send encrypted bytes; return how many. `_unsent` keeps the others. Raises OSError."""
        unsent, outgoing, taken = self._unsent, self._outgoing, 0
        try:
            while unsent or outgoing.pending:
                unsent = unsent or outgoing.read()
                sent = self._raw.send(unsent, MSG_DONTWAIT)
                taken += sent
                unsent = memoryview(unsent)[sent:]
        except BlockingIOError:
            pass
        self._unsent = unsent
        return taken

    # ---- the end, and the rest of a socket -----------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End one direction; before the sending one, send close_notify. Raises OSError."""
        if how in (SHUT_WR, SHUT_RDWR):
            self._close_notify()
        self._raw.shutdown(how)

    def close(self) -> None:
        """Send close_notify, if the socket takes it now, and close the socket."""
        self._close_notify()
        self._raw.close()

    def close_in_child(self) -> None:
        """Close the descriptor and send nothing: the parent uses the connection. Called in its child."""
        self._state = _SHUT
        self._raw.close()

    def _close_notify(self) -> None:
        with self._lock:
            # Never behind a response that was cut off: close_notify means that all has been said (RFC 8446 §6.1).
            if self._state in (_OPEN, _ENDED) and not (self._unsent or self._committed):
                with suppress(ssl.SSLError):
                    self._object.unwrap()  # raises: the client's own goodbye is not waited for
                with suppress(OSError):
                    self._flush()
            if self._state != _PLAIN:
                self._state = _SHUT

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        """Set an option of the raw socket. SO_LINGER announces a reset: no close_notify must go before it."""
        if level == SOL_SOCKET and name == SO_LINGER:
            with self._lock:
                self._state = _SHUT
        self._raw.setsockopt(level, name, value)


# ---- the environ ---------------------------------------------------------------------------------------

# OpenSSL's long names to the short ones of RFC 4514 §3 and of OpenSSL.
_SHORT_NAMES: Final = {
    "commonName": "CN", "countryName": "C", "domainComponent": "DC", "givenName": "GN", "localityName": "L",
    "organizationName": "O", "organizationalUnitName": "OU", "stateOrProvinceName": "ST", "streetAddress": "street",
    "surname": "SN", "userId": "UID",
}  # fmt: skip


def _tls_environ(obj: ssl.SSLObject) -> dict[str, str]:
    """Return the keys of a connection after its handshake. Raises ValueError or ssl.SSLError."""
    cipher = obj.cipher()
    environ = {
        "HTTPS": "on",
        "SSL_PROTOCOL": obj.version() or "",
        "SSL_CIPHER": cipher[0] if cipher else "",
        "SSL_CLIENT_VERIFY": "NONE",
    }
    der = obj.getpeercert(binary_form=True)
    if der:
        certificate: dict[str, Any] = obj.getpeercert() or {}
        environ["SSL_CLIENT_VERIFY"] = "SUCCESS"  # one that cannot be verified ends the handshake
        environ["SSL_CLIENT_S_DN"] = _distinguished_name(certificate["subject"])
        environ["SSL_CLIENT_I_DN"] = _distinguished_name(certificate["issuer"])
        environ["SSL_CLIENT_M_SERIAL"] = certificate["serialNumber"]
        environ["SSL_CLIENT_V_START"] = certificate["notBefore"]
        environ["SSL_CLIENT_V_END"] = certificate["notAfter"]
        environ["SSL_CLIENT_CERT"] = ssl.DER_cert_to_PEM_cert(der)
    return environ


def _distinguished_name(name: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Return a name as RFC 4514 writes it, last part first: ``CN=ada,O=Engines``; UTF-8 as a PEP 3333 string."""
    parts = ("+".join(f"{_SHORT_NAMES.get(key, key)}={_escaped(value)}" for key, value in part) for part in name)
    return ",".join(list(parts)[::-1]).encode("utf-8", "replace").decode("latin-1")


def _escaped(value: str) -> str:
    # RFC 4514 §2.4; control characters as hexadecimal pairs, so that a certificate cannot forge a log line.
    out = []
    for position, char in enumerate(value):
        at_edge = position == 0 or position == len(value) - 1
        if char in ',+"\\<>;' or (char == " " and at_edge) or (char == "#" and position == 0):
            out.append("\\" + char)
        elif char < " " or char == "\x7f":
            out.append(f"\\{ord(char):02X}")
        else:
            out.append(char)
    return "".join(out)
