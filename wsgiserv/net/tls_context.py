"""The TLS contexts of the settings, and faults in their files.

The keys of session tickets (RFC 5077, RFC 8446 §4.6.1) belong to the context: OpenSSL makes them with it, and
Python can neither read nor set them. So the master makes the contexts, and the workers inherit them by the fork: a
session resumes in each worker. For the same reason `ContextSeries` makes the contexts of the next days beforehand:
running workers change to the next one at the same moment as workers forked later.

Imported only where `certfile` is set."""

from __future__ import annotations

# Nothing is taken `from ssl`: the gevent worker patches that module after this one may have been imported in the
# master, and the old classes do not work under the new names.
import hashlib
import os
import ssl
from collections import deque
from collections.abc import Callable
from math import inf
from operator import attrgetter
from typing import Final, TypeAlias

from wsgiserv.config.hook_config import view_of
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ConfigError

# A context, and so its ticket keys, is in use for this long.
RENEW_S: float = 86400.0
# So many days are prepared: certificates are renewed, and the server is reloaded for that, more often than this.
# One context takes 21 KB, which the fork shares, and 0.7 ms.
_MOST_AHEAD: Final = 31
# The authorities of clients are in each context, and may be large: together no more than about this.
_MOST_FILE_BYTES: Final = 2 * 1024 * 1024
_LEAST_AHEAD: Final = 2

# Called with the connection, the name that its client asks for, and the context.
_SNICallback: TypeAlias = Callable[[ssl.SSLObject, str | None, ssl.SSLContext], None]


def make_context(settings: Settings) -> ssl.SSLContext:
    """Return the context of the settings, or of the hook `ssl_context`.

    Called before privileges are given up: only root need be able to read the key. With the hook it is called in each
    worker.

    Raises:
        ConfigError: the text names the setting, the file and its fault.
    """
    if settings.ssl_context is None:
        return _default_context(settings)
    context = _context_of_hook(settings)
    context.sslobject_class = _Client
    return context


def make_contexts(settings: Settings, count: int) -> list[ssl.SSLContext]:
    """Return contexts of the settings; only their ticket keys differ. Raises ConfigError."""
    # They share the contexts of `sni_certificates`: a connection keeps the keys of the context that it began with.
    choose = _sni_callback(settings)
    return [_default_context(settings, choose) for _ in range(count)]


class _Client(ssl.SSLObject):
    """The connection as callbacks of a context (``sni_callback``) get it."""

    def _sslsock(self) -> _Client:
        # gevent's SSLContext looks for its own socket in whatever a callback is called for (gevent/ssl.py,
        # _Callback), and fails on an SSLObject.
        return self


def _context_of_hook(settings: Settings) -> ssl.SSLContext:
    hook = settings.ssl_context
    assert hook is not None
    try:
        context = hook(view_of(settings), lambda: _default_context(settings))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the hook ssl_context raised {type(error).__name__}: {error}. It must return an ssl.SSLContext; "
            "default_ssl_context_factory() makes the one that the other settings describe."
        ) from error
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    except (AttributeError, ValueError, ssl.SSLError):
        raise ConfigError(
            f"the hook ssl_context returned {context!r}. It must return an ssl.SSLContext for a server, such as the "
            "one that default_ssl_context_factory() makes."
        ) from None
    made: ssl.SSLContext = context
    return made


def check_certificates(settings: Settings) -> None:
    """Raise ConfigError when a worker could not use the certificate, the key or another TLS setting.

    For the master, before it starts or reloads anything; it keeps nothing. The hook `ssl_context` is called, and so
    checked, by the worker alone.
    """
    if settings.certfile and settings.ssl_context is None:
        _default_context(settings)


def _default_context(settings: Settings, choose: _SNICallback | None = None) -> ssl.SSLContext:
    if settings.certfile is None:
        raise ConfigError(
            "certfile is not set, and default_ssl_context_factory() makes its context of that. Expected the path of a "
            "certificate in PEM (--certfile FILE), or a hook ssl_context that loads one itself."
        )
    context = _context_with(settings, "certfile", settings.certfile, settings.keyfile)
    choose = choose or _sni_callback(settings)
    if choose is not None:
        context.sni_callback = choose
    context.sslobject_class = _Client
    return context


def _sni_callback(settings: Settings) -> _SNICallback | None:
    """Return the function to choose a certificate by the client's name; None for one. Raises ConfigError."""
    if not settings.sni_certificates:
        return None
    named = {
        name: _context_with(settings, f"sni_certificates[{name!r}]", certfile, keyfile)
        for name, (certfile, keyfile) in settings.sni_certificates.items()
    }

    def choose(client: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        # RFC 6066 §3: names are compared without regard to case; a wildcard is one label (RFC 9525 §6.3).
        host = (name or "").lower().rstrip(".")
        found = named.get(host) or named.get("*." + host.partition(".")[2])
        if found is not None:
            client.context = found

    return choose


def _context_with(settings: Settings, setting: str, certfile: str, keyfile: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    # Compression leaks secrets (CRIME), and a client that renegotiates makes the server work for nothing.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if settings.ciphers:
        try:
            context.set_ciphers(settings.ciphers)
        except ssl.SSLError:
            raise ConfigError(
                f"ciphers = {settings.ciphers!r}: OpenSSL finds no cipher in it. Expected a list as in "
                "'ECDHE+AESGCM:ECDHE+CHACHA20'; 'openssl ciphers -v LIST' shows what a list means."
            ) from None
    _load_own_certificate(context, setting, certfile, keyfile)
    _load_authorities(context, settings)
    return context


def _load_own_certificate(context: ssl.SSLContext, cert_setting: str, certfile: str, keyfile: str | None) -> None:
    _check_pem(cert_setting, certfile, "CERTIFICATE-----")
    # One file may have both; an entry of `sni_certificates` names both.
    key_setting, key_path = cert_setting, keyfile or certfile
    if keyfile and cert_setting == "certfile":
        key_setting = "keyfile"
    _check_pem(key_setting, key_path, "PRIVATE KEY-----")

    def no_passphrase() -> str:
        # OpenSSL would ask on the terminal, in every worker.
        raise ConfigError(
            f"{key_setting} = {key_path!r}: the private key has a passphrase. Expected one without: "
            f"openssl pkey -in {key_path} -out plain.pem; or load it in the hook ssl_context."
        )

    try:
        context.load_cert_chain(certfile, keyfile, no_passphrase)
    except ssl.SSLError as error:
        # "No certificate assigned": OpenSSL has a slot for each algorithm, and a key of another algorithm than the
        # certificate's finds its slot without a certificate.
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
            kinds = "" if error.reason == "KEY_VALUES_MISMATCH" else " (they are of different algorithms)"
            raise ConfigError(
                f"{key_setting} = {key_path!r}: the private key does not belong to the first certificate in "
                f"{certfile}{kinds}. The server's own certificate comes first, then its chain."
            ) from None
        raise ConfigError(
            f"{cert_setting} = {certfile!r}, {key_setting} = {key_path!r}: OpenSSL cannot use them: "
            f"{reason_of(error)}. "
            f"'openssl x509 -in {certfile} -noout -text' and 'openssl pkey -in {key_path} -check -noout' show more."
        ) from None


def _load_authorities(context: ssl.SSLContext, settings: Settings) -> None:
    path, wanted = settings.ca_certs, settings.cert_reqs
    if path:
        _check_pem("ca_certs", path, "CERTIFICATE-----")
        try:
            context.load_verify_locations(path)
        except ssl.SSLError as error:
            raise ConfigError(
                f"ca_certs = {path!r}: OpenSSL cannot read the certificates: {reason_of(error)}. Expected PEM."
            ) from None
    elif wanted:
        raise ConfigError(
            f"cert_reqs = {wanted}: clients' certificates are asked for, but no authority is named that they must "
            "come from. Expected ca_certs beside it: --ca-certs FILE."
        )
    context.verify_mode = ssl.VerifyMode(wanted)


def _check_pem(setting: str, path: str, marker: str) -> None:
    # OpenSSL's own errors name neither the file nor what it missed there.
    try:
        with open(path, encoding="latin-1") as file:
            found = any(line.startswith("-----BEGIN ") and marker in line for line in file)
    except OSError as error:
        raise ConfigError(
            f"{setting} = {path!r}: the file cannot be read by user id {os.geteuid()}: {error.strerror}. "
            "Expected the path of a file in PEM, relative to chdir."
        ) from None
    if not found:
        what = "private key" if "KEY" in marker else "certificate"
        elsewhere = " (or name its file: --keyfile FILE)" if what == "private key" and setting == "certfile" else ""
        raise ConfigError(
            f"{setting} = {path!r}: there is no {what} in it. Expected PEM, with a line "
            f"'-----BEGIN {marker}'{elsewhere}."
        )


def reason_of(error: Exception) -> str:
    """Return the reason of an OpenSSL error in words: ``no shared cipher``."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is refused: {error.verify_message}"
    reason = getattr(error, "reason", None) or (error.args[-1] if error.args else type(error).__name__)
    return str(reason).replace("_", " ").lower()


class ContextSeries:
    """One context for each of the next days, and a last one without tickets for the time after these.

    Args:
        settings: values and files of the contexts; without the hook `ssl_context`.
        now: when the first day begins; ``time.monotonic()`` seconds, one clock for all processes.

    Made by the master; each worker has its own copy by the fork. Raises ConfigError.
    """

    def __init__(self, settings: Settings, now: float) -> None:
        self._settings = settings
        self._last = last = make_context(settings)  # first: it says best what is wrong with a file
        # Keys must not live for ever (RFC 8446 §4.6.1: seven days), so the context without an end has no tickets.
        last.options |= ssl.OP_NO_TICKET
        last.num_tickets = 0
        self._made_of, size = _read_files(settings)
        self._ahead = max(_LEAST_AHEAD, min(_MOST_AHEAD, _MOST_FILE_BYTES // max(size, 1)))
        # Oldest first; the first one is in use until `_until`.
        self._days = deque(make_contexts(settings, self._ahead))
        self._until = now + RENEW_S

    def fits(self, settings: Settings) -> bool:
        """Return whether contexts made of these settings now would be the same, but for their keys."""
        try:
            return _values(settings) == _values(self._settings) and self._made_of == _read_files(settings)[0]
        except ConfigError:
            return False  # to make them says what is wrong

    def current(self, now: float) -> tuple[ssl.SSLContext, float]:
        """Return the context for new connections, and when it ends; drop earlier ones. In a worker."""
        self._drop(now)
        return (self._days[0], self._until) if self._days else (self._last, inf)

    def renew(self, now: float) -> float:
        """Drop the contexts of past days, and make as many for the days to come; return when to call it again.

        In the master, to forget old keys there, too. Changed files are read at a reload only: until then the prepared
        days must do.
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


_values = attrgetter("certfile", "keyfile", "sni_certificates", "ca_certs", "cert_reqs", "ciphers")


def _read_files(settings: Settings) -> tuple[list[bytes], int]:
    """Return the hashes of the files, and how many bytes each context reads. Raises ConfigError."""
    # Of their contents, not their times: a renewal that is no new certificate need not end all sessions.
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
