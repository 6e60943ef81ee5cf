"""Who is trusted: addresses, networks, anybody, Unix sockets; and who is named a proxy."""

from __future__ import annotations

import pytest

from wsgiserv.net.peers import PeerNames


@pytest.mark.parametrize(
    ("allowed", "host", "trusted"),
    [
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.2", False),
        (["10.0.0.0/8"], "10.255.0.1", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["fd00::/8"], "fd00::1", True),
        (["fe80::/10"], "fe80::1%eth0", True),
        # An IPv4 client of a dual-stack socket
        (["10.0.0.0/8"], "::ffff:10.0.0.1", True),
        (["::ffff:10.0.0.1"], "::ffff:10.0.0.1", True),
        (["::1"], "127.0.0.1", False),
        (["0.0.0.0/0"], "203.0.113.9", True),
        (["0.0.0.0/0"], "2001:db8::9", False),
        ([], "127.0.0.1", False),
    ],
)
def test_addresses_and_networks(allowed: list[str], host: str, trusted: bool) -> None:
    peers = PeerNames(allowed)
    for _ in range(2):  # the second answer is remembered
        environ, name, found = peers.of((host, 4711))
        assert found is trusted
        assert environ == {"REMOTE_ADDR": host, "REMOTE_PORT": "4711"}
        assert name == host.encode()
        assert peers.names(host) is trusted


@pytest.mark.parametrize("allowed", [["*"], ["*", "10.0.0.0/8"], ["10.0.0.0/8", "*"]])
def test_a_star_trusts_every_peer_and_names_none(allowed: list[str]) -> None:
    peers = PeerNames(allowed)
    assert peers.of(("203.0.113.9", 1))[2] is True
    assert peers.names("203.0.113.9") is False
    assert peers.names("10.0.0.1") is (len(allowed) == 2)


@pytest.mark.parametrize("address", ["", b"", "/run/client.sock"])
def test_a_unix_socket_is_trusted(address: object) -> None:
    assert PeerNames([]).of(address) == ({"REMOTE_ADDR": ""}, b"unix", True)
