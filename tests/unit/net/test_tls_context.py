"""The contexts that workers share: which is in use when, and what becomes of those before and after."""

from __future__ import annotations

import ssl
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from wsgiserv.errors import ConfigError
from wsgiserv.net import tls_context as tlsseries
from wsgiserv.net.tls_context import RENEW_S, ContextSeries

CA = trustme.CA()


def settings(directory: Path, **others: Any) -> Any:
    certificate = CA.issue_cert("localhost")
    path = directory / "both.pem"
    if not path.exists():
        certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
    values: dict[str, Any] = {
        "certfile": str(path),
        "keyfile": None,
        "sni_certificates": {},
        "ca_certs": None,
        "cert_reqs": 0,
        "ciphers": None,
        "ssl_context": None,
    }
    return SimpleNamespace(**{**values, **others})


def resumes(first: ssl.SSLContext, second: ssl.SSLContext, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> bool:
    """Whether a session that ``first`` has begun goes on in ``second``."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.minimum_version = client.maximum_version = version
    CA.configure_trust(client)
    session = None
    reused = False
    for context in (first, second):
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = client.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)
        theirs = context.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(3):
            for side in (ours, theirs):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    pass
        theirs.write(b"x")
        assert ours.read(1) == b"x"
        session, reused = ours.session, bool(ours.session_reused)
    return reused


def test_each_day_has_its_key(tmp_path: Path) -> None:
    series = ContextSeries(settings(tmp_path), 100.0)
    today, until = series.current(100.0)
    assert until == 100.0 + RENEW_S
    assert resumes(today, today)
    assert series.current(until - 1.0) == (today, until)
    tomorrow, later = series.current(until)
    assert later == until + RENEW_S
    assert not resumes(today, tomorrow)
    assert resumes(tomorrow, tomorrow)


def test_a_worker_that_was_long_asleep(tmp_path: Path) -> None:
    series = ContextSeries(settings(tmp_path), 0.0)
    _, until = series.current(3.5 * RENEW_S)
    assert until == 4 * RENEW_S


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_after_the_last_day_no_key_is_used_for_ever(tmp_path: Path, version: ssl.TLSVersion) -> None:
    series = ContextSeries(settings(tmp_path), 0.0)
    last, until = series.current(1000 * RENEW_S)
    assert until == inf
    assert not resumes(last, last, version)


def test_the_master_prepares_what_it_drops(tmp_path: Path) -> None:
    series = ContextSeries(settings(tmp_path), 0.0)
    first, until = series.current(0.0)
    assert series.renew(0.0) == until
    days = len(series._days)
    assert series.renew(until) == 2 * RENEW_S
    assert len(series._days) == days
    assert first not in series._days
    _, until = series.current((days - 0.5) * RENEW_S)
    assert until == days * RENEW_S


def test_changed_files_wait_for_a_reload(tmp_path: Path) -> None:
    """The contexts of the next days must not have another certificate than today's."""
    given = settings(tmp_path)
    series = ContextSeries(given, 0.0)
    days = len(series._days)
    (tmp_path / "both.pem").write_text("broken\n")
    series.renew(RENEW_S)
    assert len(series._days) == days - 1
    assert not series.fits(given)


def test_fits(tmp_path: Path) -> None:
    given = settings(tmp_path)
    series = ContextSeries(given, 0.0)
    path = tmp_path / "both.pem"
    data = path.read_bytes()
    path.unlink()
    assert not series.fits(given)
    path.write_bytes(data)  # another inode and time, the same certificate
    assert series.fits(given)
    for changed in (
        {"cert_reqs": 1},
        {"ciphers": "ECDHE+AESGCM"},
        {"ca_certs": str(path)},
        {"sni_certificates": {"shop.example": (str(path), None)}},
        {"keyfile": str(path)},
    ):
        assert not series.fits(settings(tmp_path, **changed))
    path.write_bytes(data + b"\n")
    assert not series.fits(given)


def test_certificates_of_names_are_loaded_once(tmp_path: Path) -> None:
    path = str(tmp_path / "both.pem")
    series = ContextSeries(settings(tmp_path, sni_certificates={"a.example": (path, None)}), 0.0)
    assert len({id(context.sni_callback) for context in series._days}) == 1


def test_large_authorities_are_not_loaded_for_a_month(tmp_path: Path) -> None:
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    small = ContextSeries(settings(tmp_path, ca_certs=str(tmp_path / "ca.pem")), 0.0)
    with open(tmp_path / "ca.pem", "a") as file:
        file.write("\n".join(["# " + "x" * 100] * 5000))
    large = ContextSeries(settings(tmp_path, ca_certs=str(tmp_path / "ca.pem")), 0.0)
    assert 2 <= len(large._days) < len(small._days)


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"certfile = 'nowhere\.pem': the file cannot be read"):
        ContextSeries(settings(tmp_path, certfile="nowhere.pem"), 0.0)


def test_the_day_is_a_day() -> None:
    assert tlsseries.RENEW_S == 86400.0
