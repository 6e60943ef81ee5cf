"""The rule: certificates that are expired, not yet valid, or expire within 14 days are named, each once."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest
import trustme
from tlspair import TLSValues

from wsgiserv.net.certificate_dates import date_warnings

NOW = datetime.datetime(2026, 6, 15, 12, 0, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
HOUR = datetime.timedelta(hours=1)

# When it begins and ends, as seen from now; what is said.
CASES: dict[str, tuple[datetime.timedelta, datetime.timedelta, str | None]] = {
    "valid": (-DAY, 90 * DAY, None),
    "valid for 14 days and an hour": (-DAY, 14 * DAY + HOUR, None),
    "valid for 14 days": (-DAY, 14 * DAY, "expires on 2026-06-29 12:00:00 UTC, in 14 days"),
    "valid for an hour": (-DAY, HOUR, "in 1 hour"),
    "ends now": (-DAY, datetime.timedelta(0), "expired on 2026-06-15 12:00:00 UTC"),
    "expired": (-90 * DAY, -3 * DAY, "3 days ago: clients refuse it"),
    "begins tomorrow": (DAY, 90 * DAY, "is not valid before 2026-06-16 12:00:00 UTC, in 1 day"),
    "begins in an hour, ends tomorrow": (HOUR, DAY, "is not valid before"),
}


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def issue(ca: trustme.CA, begins: datetime.timedelta, ends: datetime.timedelta) -> trustme.LeafCert:
    return ca.issue_cert("shop.example", not_before=NOW + begins, not_after=NOW + ends)


def pem(*certs: trustme.LeafCert) -> bytes:
    return b"".join(cert.cert_chain_pems[0].bytes() for cert in certs)


@pytest.fixture
def warnings(tmp_path: Path) -> object:
    def found(text: bytes, **files: bytes) -> list[str]:
        (tmp_path / "c.pem").write_bytes(text)
        values = TLSValues(certfile=str(tmp_path / "c.pem"))
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
            if name == "ca":
                values.ca_certs = str(tmp_path / name)
            else:
                values.sni_certificates[f"{name}.example"] = (str(tmp_path / name), None)
        before = os.listdir("/proc/self/fd")
        lines = date_warnings(values, NOW.timestamp())
        assert os.listdir("/proc/self/fd") == before
        return lines

    return found


@pytest.mark.parametrize("name", CASES)
def test_the_servers_own(warnings, ca: trustme.CA, name: str) -> None:  # type: ignore[no-untyped-def]
    begins, ends, expected = CASES[name]
    cert = issue(ca, begins, ends)
    for text in (
        pem(cert),
        cert.private_key_pem.bytes() + b"\ncomment\r\n" + pem(cert),
        pem(cert).replace(b"\n", b"\r\n"),
    ):
        lines = warnings(text)
        if expected is None:
            assert lines == []
        else:
            [line] = lines
            assert expected in line
            assert "certfile = " in line
            assert "'shop.example'" in line


def test_others_of_the_chain_of_names_and_authorities(warnings, ca: trustme.CA) -> None:  # type: ignore[no-untyped-def]
    good, old, late = issue(ca, -DAY, 90 * DAY), issue(ca, -9 * DAY, -DAY), issue(ca, -DAY, 5 * DAY)
    lines = warnings(pem(good, old), plain=pem(good), named=pem(late, good), ca=pem(good, old, late))
    assert len(lines) == 4
    assert "certfile = " in lines[0]
    assert "certificate 2 of the chain" in lines[0]
    assert "sni_certificates['named.example']" in lines[1]
    assert "the certificate 'shop.example' expires" in lines[1]
    for line in lines[2:]:
        assert "ca_certs = " in line
        assert "authority" in line
    assert "expired" in lines[2]
    assert "in 5 days" in lines[3]


@pytest.mark.parametrize("text", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff\0"])
def test_what_is_no_certificate_is_left_to_who_loads_it(warnings, text: bytes) -> None:  # type: ignore[no-untyped-def]
    assert warnings(text) == []
    assert date_warnings(TLSValues(certfile="/nowhere/c.pem")) == []
    assert date_warnings(TLSValues()) == []


def test_a_python_that_decodes_none(warnings, ca: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delattr("_ssl._test_decode_cert")
    assert warnings(pem(issue(ca, -9 * DAY, -DAY))) == []
