"""Warns of certificates of the TLS settings outside their dates, or close to the end. Imported only with TLS on."""

from __future__ import annotations

import os
import re
import ssl
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from wsgiserv.config.settings import Settings

_DAY_S: Final = 86400.0
# Authorities that issue for 90 days renew after 60; this leaves time to see that a renewal has failed.
_SOON_S: Final = 14 * _DAY_S
_BLOCK: Final = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----.*?-----END (?:X509 |TRUSTED )?CERTIFICATE-----", re.DOTALL
)


class _Dates(NamedTuple):
    """The validity of a certificate, as times of `time.time`, and a name for it."""

    name: str
    begins: float
    ends: float


def date_warnings(settings: Settings, now: float | None = None) -> list[str]:
    """Return a line for each expired or not yet valid certificate, and for each one with 14 days or less left.

    Args:
        settings: the TLS settings; unreadable files are skipped here, and reported when they are loaded.
        now: seconds since the epoch; None is the present.
    """
    now = time.time() if now is None else now
    found: list[str] = []
    if settings.certfile:
        found += _of_chain(f"certfile = {settings.certfile!r}", settings.certfile, now)
    for host, (certfile, _) in settings.sni_certificates.items():
        found += _of_chain(f"sni_certificates[{host!r}] = {certfile!r}", certfile, now)
    # OpenSSL loads an expired authority without a word, and then refuses each client.
    if settings.ca_certs:
        where, refused = f"ca_certs = {settings.ca_certs!r}", "certificates of its clients are refused"
        for dates in _read(settings.ca_certs):
            found += _judge(f"{where}: the authority {dates.name}", dates, now, refused)
    return found


def _of_chain(where: str, path: str, now: float) -> list[str]:
    found = []
    # An expired certificate of the chain fails the handshake as surely as the first one, and is seen later.
    for number, dates in enumerate(_read(path), 1):
        which = "the certificate" if number == 1 else f"certificate {number} of the chain,"
        found += _judge(f"{where}: {which} {dates.name}", dates, now, "clients refuse it")
    return found


def _judge(what: str, dates: _Dates, now: float, refused: str) -> list[str]:
    renew = "Renew it, then reload the server (kill -HUP)"
    if now >= dates.ends:
        return [f"{what} expired on {_date(dates.ends)}, {_days(now - dates.ends)} ago: {refused}. {renew}"]
    if now < dates.begins:
        until = f"is not valid before {_date(dates.begins)}, in {_days(dates.begins - now)}"
        return [f"{what} {until}: {refused} until then. Check the clock of this host, and the certificate"]
    if dates.ends - now <= _SOON_S:
        return [f"{what} expires on {_date(dates.ends)}, in {_days(dates.ends - now)}. {renew}"]
    return []


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _days(seconds: float) -> str:
    for unit, length_s in (("day", _DAY_S), ("hour", 3600.0), ("minute", 60.0)):
        count = int(seconds // length_s)
        if count:
            return f"{count} {unit}{'s' * (count != 1)}"
    return "less than a minute"


def _read(path: str) -> Iterator[_Dates]:
    """Yield the dates of the certificates of a PEM file, in its order."""
    try:
        with open(path, "rb") as file:
            blocks = _BLOCK.findall(file.read())
    except OSError:
        return
    for block in blocks:
        try:
            found = _decoded(block)
            begins, ends = map(ssl.cert_time_to_seconds, (found["notBefore"], found["notAfter"]))
        except (OSError, ValueError, KeyError, ssl.SSLError):
            continue  # what OpenSSL cannot read is refused when it is loaded
        yield _Dates(_name(found), begins, ends)


def _decoded(block: bytes) -> dict[str, Any]:
    """Return a certificate as `ssl.SSLSocket.getpeercert` does. Raises OSError, ValueError, SSLError."""
    # Python has no public call that gives the dates of a certificate which is not a peer's:
    # SSLContext.get_ca_certs() lists authorities alone, and no server's own certificate. This one, which CPython's
    # tests use, has been there since 2.6; without it there are no warnings.
    import _ssl

    decode = getattr(_ssl, "_test_decode_cert", None)
    if decode is None:
        raise ValueError("this Python does not decode certificates")
    with _file_of(block) as path:
        found: dict[str, Any] = decode(path)
    return found


@contextmanager
def _file_of(block: bytes) -> Iterator[str]:
    """Give the path of a file with these bytes: the decoder reads only files, and only their first certificate."""
    if hasattr(os, "memfd_create"):  # the temporary directory may be read-only
        with open(os.memfd_create("certificate"), "wb", 0) as file:
            file.write(block)
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(buffering=0) as named:
            named.write(block)
            yield named.name


def _name(found: Mapping[str, Any]) -> str:
    """Return a name for people: the first host name, else the common name or organization."""
    # Clients look at the subjectAltName only (RFC 9525 §2); the other names are for people.
    names = [value for _, value in found.get("subjectAltName", ())]
    subject = {key: value for part in found.get("subject", ()) for key, value in part}
    names += [subject[key] for key in ("commonName", "organizationName") if key in subject]
    return repr(names[0]) if names else f"with the serial number {found.get('serialNumber', '?')}"
