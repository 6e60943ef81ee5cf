"""The TLS contexts that all workers share, so that a session resumes in each of them.

Owns: `ContextSeries`: contexts that differ in their ticket keys only, which of them is in use when, the files that they
were made of.
Must not know: processes, sockets, who serves.

The keys that encipher session tickets (RFC 5077, RFC 8446 §4.6.1) belong to the context: OpenSSL makes them with it,
and Python can neither read nor set them. So the master makes the contexts and the workers inherit them by the fork. For
the same reason the contexts of the next days are made beforehand: workers that run already change to the next one at
the same moment as those that are forked later.

Imported only where `certfile` is set. As in `tlscontext`, nothing is taken ``from ssl``.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from collections import deque
from math import inf
from typing import Any, Final

from wsgiserv.errors import ConfigError
from wsgiserv.net.tls_context import TLSSettings, make_context, make_contexts

__all__ = ["RENEW_S", "ContextSeries"]

# A context, and so its ticket keys, is in use for this long.
RENEW_S: float = 86400.0
# So many days are prepared: certificates are renewed, and the server is reloaded for that, more often than this.
# One context takes 21 KB, which the fork shares, and 0.7 ms.
_MOST_AHEAD: Final = 31
# The authorities of clients are in each context, and may be large: together no more than about this.
_MOST_FILE_BYTES: Final = 2 * 1024 * 1024
_LEAST_AHEAD: Final = 2


class ContextSeries:
    """One context for each of the next days, and a last one without tickets for the time after these.

    Args:
        settings: what the contexts are made of; without the hook `ssl_context`.
        now: when the first day begins, ``time.monotonic()`` seconds, which all processes share.

    Made by the master; each worker has its own copy by the fork. Raises ConfigError.
    """

    def __init__(self, settings: TLSSettings, now: float) -> None:
        self._settings = settings
        self._last = make_context(settings)  # first: it says best what is wrong with a file
        _issue_no_tickets(self._last)
        self._made_of, size = _read_files(settings)
        self._ahead = max(_LEAST_AHEAD, min(_MOST_AHEAD, _MOST_FILE_BYTES // max(size, 1)))
        # Oldest first; the first one is in use until `_until`.
        self._days = deque(make_contexts(settings, self._ahead))
        self._until = now + RENEW_S

    def fits(self, settings: TLSSettings) -> bool:
        """Whether contexts made of these settings now would be the same, but for their keys."""
        try:
            return _values(settings) == _values(self._settings) and self._made_of == _read_files(settings)[0]
        except ConfigError:
            return False  # to make them says what is wrong

    def current(self, now: float) -> tuple[ssl.SSLContext, float]:
        """Return the context for new connections, and until when it is; let go of those before. In a worker."""
        self._drop(now)
        return (self._days[0], self._until) if self._days else (self._last, inf)

    def renew(self, now: float) -> float:
        """Let go of the contexts whose day is over and make as many for the days to come; return when to look again.

        In the master, which is to know no old keys either. Files that have changed are not read before a reload: then
        the days that are left must do.
        """
        if now < self._until:
            return self._until
        before = len(self._days)
        self._drop(now)
        if before and self.fits(self._settings):
            try:
                self._days += make_contexts(self._settings, self._ahead - len(self._days))
            except ConfigError:
                pass  # replaced in this very moment
        return self._until

    def _drop(self, now: float) -> None:
        while now >= self._until:
            if self._days:
                self._days.popleft()
            self._until += RENEW_S


def _issue_no_tickets(context: ssl.SSLContext) -> None:
    """Have a context neither issue nor take tickets: keys must not live for ever (RFC 8446 §4.6.1: seven days)."""
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0


def _values(settings: TLSSettings) -> tuple[Any, ...]:
    return (
        settings.certfile,
        settings.keyfile,
        dict(settings.sni_certificates),
        settings.ca_certs,
        settings.cert_reqs,
        settings.ciphers,
    )


def _read_files(settings: TLSSettings) -> tuple[list[bytes], int]:
    """Return what tells whether a file has changed, and the bytes that each context reads. Raises ConfigError.

    Their contents, not their times: a renewal that is no new certificate need not end all sessions.
    """
    in_each = [settings.certfile, settings.keyfile, settings.ca_certs]
    shared = [path for pair in settings.sni_certificates.values() for path in pair]
    contents = [_read_file(path) for path in in_each if path]
    size = sum(map(len, contents))
    contents += [_read_file(path) for path in shared if path]
    return [hashlib.sha256(data).digest() for data in contents], size


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path!r} cannot be read by user id {os.geteuid()}: {error.strerror}.") from None
