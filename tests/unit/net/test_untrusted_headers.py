"""What becomes of untrusted peers' forwarded headers, and the words about it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from wsgiserv.net.untrusted_headers import UntrustedHeaders

LOG = logging.getLogger("test.untrusted_headers")
CLAIMS = ("HTTP_X_FORWARDED_FOR", "HTTP_X_REAL_IP")


class Peer:
    """A socket that knows its other end, or has lost it."""

    def __init__(self, address: object) -> None:
        self.address = address

    def getpeername(self) -> object:
        if self.address is None:
            raise OSError("not connected")
        return self.address


def handle(
    headers: UntrustedHeaders, claims: tuple[str, ...] = CLAIMS, address: object = ("10.0.0.7", 1), **more: str
) -> dict[str, Any]:
    """Return the environ of a request with these headers."""
    environ = {"REMOTE_ADDR": "10.0.0.7", "HTTP_HOST": "h", **dict.fromkeys(claims, "1.2.3.4"), **more}
    sock: Any = Peer(address)
    headers.handle(environ, claims, "10.0.0.7", sock)
    return environ


def test_they_are_removed(caplog: pytest.LogCaptureFixture) -> None:
    headers = UntrustedHeaders(LOG)
    with caplog.at_level(logging.DEBUG, LOG.name):
        for _ in range(3):
            assert handle(headers) == {"REMOTE_ADDR": "10.0.0.7", "HTTP_HOST": "h"}
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert "10.0.0.7 is not in forwarded_allow_ips: its X-Forwarded-For, X-Real-Ip did not" in record.getMessage()


def test_they_pass_and_it_is_told_once() -> None:
    told: list[str] = []
    headers = UntrustedHeaders(LOG, told.append)
    for _ in range(3):
        assert handle(headers).keys() >= set(CLAIMS)
    [advice] = told
    assert advice.startswith("X-Forwarded-For and X-Real-Ip of 10.0.0.7 reach the application as sent")
    assert 'set forwarded_allow_ips = "10.0.0.7"' in advice


def test_a_request_id_alone_tells_of_no_proxy() -> None:
    told: list[str] = []
    headers = UntrustedHeaders(LOG, told.append)
    assert "HTTP_X_REQUEST_ID" in handle(headers, ("HTTP_X_REQUEST_ID",))
    assert not told
    handle(headers, ("HTTP_X_FORWARDED_FOR", "HTTP_X_REQUEST_ID"))
    assert len(told) == 1


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("2001:db8::7", 1, 0, 0), "2001:db8::7"),
        (("::ffff:192.0.2.7", 1, 0, 0), "192.0.2.7"),
        (("fe80::7%eth0", 1, 0, 2), "fe80::7"),
        (None, "10.0.0.7"),
        ("", "10.0.0.7"),
    ],
)
def test_the_address_to_set(address: object, shown: str) -> None:
    told: list[str] = []
    handle(UntrustedHeaders(LOG, told.append), ("HTTP_FORWARDED",), address)
    assert told[0].startswith(f"Forwarded of {shown} reaches the application")
    assert f'set forwarded_allow_ips = "{shown}"' in told[0]


def test_a_proxy_that_looks_into_no_header_is_not_to_be_trusted() -> None:
    told: list[str] = []
    handle(UntrustedHeaders(LOG, told.append), address=("192.0.2.2", 1), PROXY_PROTOCOL="TCP4")
    assert "The proxy 192.0.2.2 speaks the PROXY protocol" in told[0]
    assert 'forwarded_allow_ips = ""' in told[0]
    assert 'forwarded_allow_ips = "192' not in told[0]
