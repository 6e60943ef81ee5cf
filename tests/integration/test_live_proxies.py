"""Proxies and those who pretend to be one, in every worker class (issue 3, rule 13)."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import pytest
import trustme
from cases import check_each
from rawclient import RawClient
from server import Server, Start, wait_until

TRUSTED = "127.0.0.1"
# Another address of this host: for the server, an ordinary client.
STRANGER = "127.0.0.2"
REFUSED = (r"\[WARNING\] (?:WS\d+ )?(127\.0\.0\.[12]|203\.0\.113\.9): refused with 400",)

CLAIMS = (
    "X-Forwarded-For: 203.0.113.9\r\n"
    "X-Forwarded-Proto: https\r\n"
    "X-Forwarded-Protocol: ssl\r\n"
    "X-Forwarded-Ssl: on\r\n"
    "X-Forwarded-Host: out.example\r\n"
    "X-Forwarded-Port: 8443\r\n"
    "X-Forwarded-Prefix: /shop\r\n"
    "Forwarded: for=198.51.100.7;proto=https;host=rfc.example\r\n"
    "X-Real-IP: 203.0.113.9\r\n"
    "X-Request-Id: forged\r\n"
)
CLAIMED_KEYS = {"HTTP_" + line.partition(":")[0].upper().replace("-", "_") for line in CLAIMS.split("\r\n") if line}


class From(RawClient):
    """A client with an address of its own on the loopback."""

    def __init__(self, source: str, server: Server) -> None:
        self.sock = socket.create_connection(server.address, 15, source_address=(source, 0))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.deadline_s = 15
        self._buffer = b""

    @property
    def port(self) -> str:
        return str(self.sock.getsockname()[1])

    def environ(self, headers: str = "", target: str = "/environ") -> dict[str, Any]:
        response = self.get(target, headers=headers)
        assert response.status == 200, response
        environ: dict[str, Any] = response.json()["environ"]
        return environ


# ---- header fields ---------------------------------------------------------------------------------------


def test_nothing_but_the_scheme_unless_asked_for(shared_servers: Start) -> None:
    server = shared_servers("apps:app")
    with From(TRUSTED, server) as client:
        environ = client.environ(CLAIMS)
        assert environ["REMOTE_ADDR"] == TRUSTED
        assert environ["REMOTE_PORT"] == client.port
    assert environ["HTTP_HOST"] == "test"
    assert environ["SERVER_PORT"] == str(server.address[1])
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/environ")
    assert environ["wsgi.url_scheme"] == "https"
    assert environ.keys() >= CLAIMED_KEYS  # a believed proxy's headers stay


# Set by hand, to the default: without it the headers pass (test_live_untrusted_headers.py).
SET = ("--forwarded-allow-ips", "127.0.0.1,::1")


@pytest.mark.parametrize("asked", [SET, (*SET, "--forwarded-headers", "for,proto,host,port,prefix")])
def test_a_strangers_claims_do_not_reach_the_application(shared_servers: Start, asked: tuple[str, ...]) -> None:
    server = shared_servers("apps:app", *asked)
    with From(STRANGER, server) as client:
        plain = client.environ()
        for _ in range(2):  # the header block comes from a cache the second time
            environ = client.environ(CLAIMS + "X-Other: kept\r\n")
            assert not CLAIMED_KEYS & environ.keys()
            assert environ["HTTP_X_OTHER"] == "kept"
            for key in ("REMOTE_ADDR", "REMOTE_PORT", "HTTP_HOST", "SERVER_PORT", "SCRIPT_NAME", "wsgi.url_scheme"):
                assert environ[key] == plain[key]
            assert environ["wsgiserv.request_id"] != "forged"
    with From(TRUSTED, server) as client:
        assert client.environ(CLAIMS).keys() >= CLAIMED_KEYS  # and the cache keeps them for a proxy
    with From(STRANGER, server) as client:
        client.send(
            f"POST /environ HTTP/1.1\r\nHost: t\r\n{CLAIMS}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
        )
        assert not CLAIMED_KEYS & client.read_response().json()["environ"].keys()


def test_the_log_says_once_what_happened_to_them(start: Start) -> None:
    server = start("apps:app", *SET)
    with From(TRUSTED, server) as proxy, From(STRANGER, server) as client:
        proxy.environ(CLAIMS)
        for _ in range(3):
            client.environ("X-Forwarded-Proto: https\r\n")
        server.wait_for_log(r"127\.0\.0\.2 is not in forwarded_allow_ips: its X-Forwarded-Proto ")
    assert server.log.text.count("is not in forwarded_allow_ips") == 1


def test_names_in_secure_scheme_headers_are_removed_as_well(start: Start) -> None:
    conf = "secure_scheme_headers = {'X-Edge-Tls': 'yes'}\n"
    server = start("apps:app", "-c", "conf.py", *SET, files={"conf.py": conf})
    with From(STRANGER, server) as client:
        environ = client.environ("X-Edge-Tls: yes\r\n")
        assert "HTTP_X_EDGE_TLS" not in environ
        assert environ["wsgi.url_scheme"] == "http"
    with From(TRUSTED, server) as client:
        assert client.environ("X-Edge-Tls: yes\r\n")["wsgi.url_scheme"] == "https"


def test_underscores_are_no_way_around(shared_servers: Start) -> None:
    server = shared_servers("apps:app", *SET, "--forwarded-headers", "for", "--header-map", "dangerous")
    with From(STRANGER, server) as client:
        assert "HTTP_X_FORWARDED_FOR" not in client.environ("X_Forwarded_For: 6.6.6.6\r\n")


def test_everything_that_was_asked_for(shared_servers: Start) -> None:
    server = shared_servers("apps:app", "--forwarded-headers", "for,proto,host,port,prefix")
    with From(TRUSTED, server) as client:
        environ = client.environ(CLAIMS, "/shop/environ")
        assert environ["REMOTE_ADDR"] == "203.0.113.9"
        assert "REMOTE_PORT" not in environ
        assert environ["wsgi.url_scheme"] == "https"
        assert environ["HTTP_HOST"] == "out.example:8443"
        assert environ["SERVER_PORT"] == "8443"
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", "/environ")
        # The same connection carries other clients' requests.
        assert client.environ("X-Forwarded-For: 198.51.100.1:99\r\n")["REMOTE_ADDR"] == "198.51.100.1"
        plain = client.environ()
        assert (plain["REMOTE_ADDR"], plain["REMOTE_PORT"]) == (TRUSTED, client.port)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("6.6.6.6, 203.0.113.9", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("127.0.0.1, 203.0.113.9", "203.0.113.9"),
        ("10.1.2.4, 10.1.2.3", "10.1.2.4"),
        ("6.6.6.6\r\nX-Forwarded-For: 203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, unknown", TRUSTED),
        ("203.0.113.9, _x, 10.1.2.3", "10.1.2.3"),
        ("2001:db8::9", "2001:db8::9"),
        ('"[2001:db8::9]:80"', "2001:db8::9"),
        ("' OR 1=1 --", TRUSTED),
        ("\xe9" * 50, TRUSTED),
        ("10.1.2.3, " * 700 + "10.1.2.3", "10.1.2.3"),
        ("", TRUSTED),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_the_right_most_address_that_is_no_proxys(shared_servers: Start, value: str, address: str) -> None:
    server = shared_servers("apps:app", "--forwarded-headers", "for", "--forwarded-allow-ips", "127.0.0.1,10.0.0.0/8")
    with From(TRUSTED, server) as client:
        assert client.environ(f"X-Forwarded-For: {value}\r\n")["REMOTE_ADDR"] == address
    with From(STRANGER, server) as client:
        assert client.environ(f"X-Forwarded-For: {value}\r\n")["REMOTE_ADDR"] == STRANGER


def test_forwarded_of_rfc_7239(shared_servers: Start) -> None:
    server = shared_servers("apps:app", "--forwarded-headers", "forwarded")
    with From(TRUSTED, server) as client:
        value = 'for="6.6.6.6, for="[2001:db8::9]:4711";proto=https;host="out.example"'
        environ = client.environ(f"Forwarded: {value}\r\nX-Forwarded-For: 6.6.6.6\r\n")
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("2001:db8::9", "4711")
    assert environ["wsgi.url_scheme"] == "https"
    assert environ["HTTP_HOST"] == "out.example"


@pytest.mark.parametrize(
    ("allowed", "believed"),
    [("127.0.0.2", True), ("127.0.0.0/30", True), ("*", True), ("::ffff:127.0.0.2", False), ("", False)],
)
def test_addresses_networks_and_a_star(start: Start, allowed: str, believed: bool) -> None:
    server = start("apps:app", "--forwarded-headers", "for", "--forwarded-allow-ips", allowed)
    with From(STRANGER, server) as client:
        environ = client.environ("X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\n")
    assert environ["REMOTE_ADDR"] == ("203.0.113.9" if believed else STRANGER)


def test_a_unix_socket_is_believed(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    server = start(
        *("apps:app", "-b", f"unix:{path}", "--forwarded-headers", "for,proto", "--socket-mode", "600"), bind="none"
    )
    server.wait_for_log(r"unix:")
    with RawClient(path) as client:
        response = client.get("/environ", headers="X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\n")
    assert response.json()["environ"]["REMOTE_ADDR"] == "203.0.113.9"


def test_the_access_log_shows_the_client(start: Start, tmp_path: Path) -> None:
    server = start(
        "apps:app", "--forwarded-headers", "for", "--access-logfile", "access.log", "--access-logformat", "%(h)s"
    )
    with From(TRUSTED, server) as client:
        client.environ("X-Forwarded-For: 203.0.113.9\r\n")
    log = tmp_path / "access.log"
    wait_until(lambda: log.exists() and log.read_text() == "203.0.113.9\n", "the access log line")


# ---- PROXY protocol --------------------------------------------------------------------------------------

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V1 = b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n"
V1_SIX = b"PROXY TCP6 2001:db8::9 2001:db8::1 4711 443\r\n"
BLOCK = bytes([203, 0, 113, 9, 198, 51, 100, 1]) + struct.pack("!HH", 4711, 443)
V2 = SIGNATURE + struct.pack("!BBH", 0x21, 0x11, len(BLOCK) + 5) + BLOCK + b"\x04\x00\x02ab"
V2_LOCAL = SIGNATURE + struct.pack("!BBH", 0x20, 0, 0)
REQUEST = b"GET /environ HTTP/1.1\r\nHost: test\r\n\r\n"


def told(environ: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        environ.get(key, "") for key in ("REMOTE_ADDR", "REMOTE_PORT", "PROXY_PROTOCOL", "PROXY_ADDR", "PROXY_PORT")
    )


FOUR = ("203.0.113.9", "4711", "TCP4", "198.51.100.1", "443")
SIX = ("2001:db8::9", "4711", "TCP6", "2001:db8::1", "443")

ACCEPTED = [
    ("v1", V1, FOUR),
    ("v1", V1_SIX, SIX),
    ("v1", b"PROXY UNKNOWN\r\n", None),
    ("v2", V2, FOUR),
    ("v2", V2_LOCAL, None),
    ("auto", V1, FOUR),
    ("auto", V2, FOUR),
    ("auto", b"", None),
    ("auto", b"\r\n", None),  # HTTP's own empty line
]


def test_a_proxys_header(shared_servers: Start) -> None:
    def check(case: tuple[str, bytes, tuple[str, ...] | None]) -> None:
        mode, header, expected = case
        server = shared_servers("apps:app", "--proxy-protocol", mode, expect=REFUSED)
        for step in (0, 1):
            with From(TRUSTED, server) as client:
                client.send(header + REQUEST, step=step)
                told_then = expected or (TRUSTED, client.port, "", "", "")
                assert told(client.read_response().json()["environ"]) == told_then, f"step {step}"
                # For the whole connection, also for pipelined requests.
                client.send(REQUEST * 2)
                for _ in range(2):
                    assert told(client.read_response().json()["environ"]) == told_then, f"step {step}"

    check_each(((f"{mode} {header!r}", (mode, header, expected)) for mode, header, expected in ACCEPTED), check)


MALFORMED = [
    ("v1", REQUEST),
    ("v2", REQUEST),
    ("v1", V2 + REQUEST),
    ("v2", V1 + REQUEST),
    ("v1", V1 + V1 + REQUEST),  # a client's own, behind the proxy's
    ("v2", V2 + V2 + REQUEST),
    ("auto", V1 + V2 + REQUEST),
    ("auto", b"PROXY TCP4 1.2.3.4\r\n" + REQUEST),
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\n" + REQUEST),
    ("v1", b"PROXY TCP4 " + b"1" * 200),
    ("v2", SIGNATURE + b"\x21\x11\x00\x04abcd" + REQUEST),
    ("v2", SIGNATURE + b"\x41\x11" + REQUEST),
    ("v2", SIGNATURE + b"\x21\x11\xff\xff" + REQUEST),
    ("off", V1 + REQUEST),
    ("off", V2 + REQUEST),
]


def test_what_is_refused(shared_servers: Start) -> None:
    def check(case: tuple[str, bytes]) -> None:
        mode, data = case
        server = shared_servers("apps:app", "--proxy-protocol", mode, expect=REFUSED)
        for step in (0, 1):
            with From(TRUSTED, server) as client:
                client.offer(data, step=step)
                response = client.read_response()
                assert response.status == 400
                assert response.closes
                client.expect_close()

    check_each(((f"{mode} {data[:50]!r}", (mode, data)) for mode, data in MALFORMED), check)


@pytest.mark.parametrize("mode", ["v1", "v2", "auto"])
@pytest.mark.parametrize("header", [V1, V2, V2_LOCAL])
def test_a_stranger_may_not_speak_it(shared_servers: Start, mode: str, header: bytes) -> None:
    server = shared_servers("apps:app", "--proxy-protocol", mode, expect=REFUSED)
    with From(STRANGER, server) as client:
        assert told(client.environ()) == (STRANGER, client.port, "", "", "")
    with From(STRANGER, server) as client:
        client.offer(header + REQUEST)
        assert client.read_response().status == 400
        client.expect_close()


def test_proxy_allow_ips(start: Start) -> None:
    server = start("apps:app", "--proxy-protocol", "v1", "--proxy-allow-from", "127.0.0.2/32", expect=REFUSED)
    with From(STRANGER, server) as client:
        client.send(V1 + REQUEST)
        assert told(client.read_response().json()["environ"]) == FOUR
    with From(TRUSTED, server) as client:
        client.offer(V1 + REQUEST)
        assert client.read_response().status == 400


def test_a_unix_socket_may_speak_it(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    server = start("apps:app", "-b", f"unix:{path}", "--proxy-protocol", "v2", bind="none")
    server.wait_for_log(r"unix:")
    with RawClient(path) as client:
        client.send(V2 + REQUEST)
        assert told(client.read_response().json()["environ"]) == FOUR


def test_header_fields_go_on_top_of_it(start: Start) -> None:
    server = start("apps:app", "--proxy-protocol", "v1", "--forwarded-headers", "for,proto")
    with From(TRUSTED, server) as client:
        client.send(V1 + REQUEST)
        assert told(client.read_response().json()["environ"]) == FOUR
        environ = client.environ("X-Forwarded-For: 192.0.2.7\r\n")
        assert environ["REMOTE_ADDR"] == "192.0.2.7"
        assert "REMOTE_PORT" not in environ


def test_a_proxy_that_says_nothing_is_closed_in_time(start: Start) -> None:
    server = start("apps:app", "--proxy-protocol", "v2", "--header-timeout", "1")
    with From(TRUSTED, server) as silent, From(TRUSTED, server) as halfway, From(TRUSTED, server) as good:
        halfway.send(V2[:20])
        good.send(V2 + REQUEST)
        assert good.read_response().status == 200
        silent.expect_close()
        halfway.expect_close()


def test_a_port_check_leaves_no_trace(start: Start) -> None:
    server = start("apps:app", "--proxy-protocol", "v1")
    for data in (b"", V1[:9], V1):
        with From(TRUSTED, server) as client:
            client.send(data)
            client.half_close()
            client.expect_close()
    with From(TRUSTED, server) as client:
        client.send(V1 + REQUEST)
        assert client.read_response().status == 200


def test_large_responses_and_bodies_behind_it(start: Start) -> None:
    server = start("apps:app", "--proxy-protocol", "auto")
    with From(TRUSTED, server) as client:
        body = b"x" * 300_000
        client.send(V1 + b"POST /environ HTTP/1.1\r\nHost: t\r\nContent-Length: 300000\r\n\r\n" + body)
        assert told(client.read_response().json()["environ"]) == FOUR


# ---- PROXY protocol before TLS -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_server(start: Start, tmp_path: Path, ca: trustme.CA) -> Server:
    cert = ca.issue_cert("localhost")
    cert.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    pair = ("--certfile", "both.pem", "--keyfile", "both.pem")
    return start("apps:app", *pair, "--proxy-protocol", "auto", expect=REFUSED)


def test_the_header_comes_before_the_handshake(tls_server: Server, ca: trustme.CA) -> None:
    for header in (V1, V2, V2_LOCAL, b""):
        check_over_tls(tls_server, ca, header)


def check_over_tls(tls_server: Server, ca: trustme.CA, header: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with From(TRUSTED, tls_server) as client:
        # In one segment with the client's first record: not a byte of that may be lost.
        client.send(header + outgoing.read())
        data = b""
        for step in (
            tls.do_handshake,
            lambda: tls.write(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")),
        ):
            while True:
                try:
                    step()
                    break
                except ssl.SSLWantReadError:
                    client.sock.sendall(outgoing.read())
                    incoming.write(client.sock.recv(65536))
        client.sock.sendall(outgoing.read())
        while True:
            try:
                piece = tls.read(65536)
            except ssl.SSLWantReadError:
                got = client.sock.recv(65536)
                incoming.write(got) if got else incoming.write_eof()
                continue
            except ssl.SSLZeroReturnError:
                break
            if not piece:
                break
            data += piece
        environ = json.loads(data.partition(b"\r\n\r\n")[2])["environ"]
        assert told(environ) == (FOUR if header in (V1, V2) else (TRUSTED, client.port, "", "", ""))
    assert environ["wsgi.url_scheme"] == "https"


def test_no_tls_behind_the_header(tls_server: Server) -> None:
    others = [REQUEST, V1 + REQUEST, V2 + REQUEST, b"PROPFIND / HTTP/1.1\r\n\r\n", b"PROXY x\r\n"]
    for data in others:
        for step in (0, 1):
            with From(TRUSTED, tls_server) as client:
                client.offer(data, step=step)
                assert client.read_response().status == 400
                client.expect_close()
