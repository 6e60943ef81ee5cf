"""Answers as applications mean them, whatever they are made of, and the access log of people who want JSON."""

from __future__ import annotations

import base64
import calendar
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from rawclient import RawClient
from server import Connect, Server, Start, wait_until

OWN_JSON = (
    '{"path":"%(U)s","line":"%(r)s","user":"%(u)s","agent":"%(a)s","own":"%({X-Own}i)s","out":"%({X-Out}o)s",'
    '"type":"%({Content-Type}o)s","status":%(s)s,"cut":"%(a).3s"}'
)
DROPPED = r"\[WARNING\] WS1600 \S+ \S+: response header \S+ dropped"
TOO_LONG = r"\[ERROR\] (?:WS\d+ )?GET /ranged.*longer than its Content-Length of 0"


@pytest.fixture
def site(shared_servers: Start) -> Iterator[Server]:
    """A server of one worker, whose access log is people's own JSON on standard output."""
    found = shared_servers(
        *("answerapps:app", "-w", "1", "--access-logfile", "-", "--access-logformat", OWN_JSON),
        expect=(DROPPED, r"\[WARNING\] (?:WS\d+ )?.*refused with 400", TOO_LONG),
    )
    before = len(found.log.lines)
    yield found
    found.check(before)


@pytest.fixture
def client(site: Server) -> Iterator[RawClient]:
    with RawClient(site.address) as found:
        yield found


def access_lines(site: Server, number: int, beginning: str) -> list[str]:
    """Wait for so many access lines that begin so, whatever comes late from the test before, and return them."""

    def found() -> list[str]:
        return [line for line in site.out.lines if line.startswith(beginning)]

    wait_until(lambda: len(found()) >= number, "the access lines")
    return found()


def test_headers_about_the_connection_are_dropped_and_told_once(site: Server, client: RawClient) -> None:
    """Also on a connection that stays: what follows is read as the next response."""
    dropped = {
        "Connection": "keep-alive",
        "keep-alive": "timeout=5",
        "Transfer-Encoding": "chunked",
        "TE": "trailers",
        "Trailer": "X",
        "Upgrade": "h2c",
        "Proxy-Authenticate": "Basic",
        "Proxy-Authorization": "x",
        "Proxy-Connection": "keep-alive",
    }
    for view, framing in ("hop", "chunked"), ("whole", "length"):
        for name, value in dropped.items():
            response = client.get(f"/{view}?{urlencode({name: value, 'X-End': '1'})}")
            assert (response.status, response.framing) == (200, framing)
            assert response.one("X-End") == "1"
            assert response.one("Connection") is None
            assert response.all("Transfer-Encoding") == (["chunked"] if framing == "chunked" else [])
            assert all(response.one(other) is None for other in dropped if other != "Transfer-Encoding")
    response = client.get("/whole?" + urlencode({"Connection": "X-Named, keep-alive", "X-Named": "1", "X-End": "1"}))
    assert (response.one("X-Named"), response.one("X-End")) == (None, "1")
    assert client.get("/whole?Content-Length=6&Transfer-Encoding=chunked").body == b"whole\n"
    assert client.get("/replaced").status == 503
    client.request("/hop?Connection=keep-alive&Keep-Alive=5", headers="Connection: keep-alive\r\n")
    assert client.read_response().body == b"data: 1\n\ndata: 2\n\n"
    for name in (*dropped, "X-Named"):
        match = site.wait_for_log(rf"\[WARNING\] WS1600 GET (/\S+): response header {name} dropped")
        assert match[1] in (["/whole"] if name == "X-Named" else ["/hop", "/switch"])  # whichever test came first
    assert site.log.text.count(" dropped: ") == len(dropped) + 1, site.log.text


def test_connection_close_closes(site: Server) -> None:
    for target in ("/whole?Connection=close", "/hop?Connection=Close", "/whole?Connection=close&Content-Length=6"):
        for method in "GET", "HEAD":
            with RawClient(site.address) as client:
                client.request(target, method=method)
                response = client.read_response(method)
                assert response.closes
                client.expect_close()


@pytest.mark.parametrize("shape", ["tuple", "lists", "generator", "items", "zip"])
def test_headers_in_other_shapes_than_a_list_of_tuples(client: RawClient, shape: str) -> None:
    for _ in range(2):
        response = client.get(f"/shape?{shape}")
        assert (response.status, response.one("Content-Type"), response.one("X-A")) == (200, "text/plain", "1")


def test_a_string_is_sent_as_its_own_content(site: Server, client: RawClient) -> None:
    for which, kind in ("enum", "csv"), ("evil", "csv"), ("plain", "plain"), ("evil", "csv"):
        response = client.get(f"/text?{which}")
        assert (response.status, response.reason) == (299, "Own Words")
        assert response.one("Content-Type") == f"text/{kind}"
    kinds = [json.loads(line)["type"] for line in access_lines(site, 4, '{"path":"/text"')]
    assert kinds == ["text/csv", "text/csv", "text/plain", "text/csv"]


def test_blanks_around_a_value_are_not_sent(site: Server) -> None:
    with RawClient(site.address) as client:
        client.request("/blanks", headers="Connection: close\r\n")
        data = b""
        while piece := client.sock.recv(65536):
            data += piece
    assert b"\r\nX-A: a\r\nX-B: b b\r\nX-C: \r\nContent-Length: 1\r\n" in data


@pytest.mark.parametrize("query", ["whole", "streamed"])
def test_the_date_is_the_time_of_the_response(client: RawClient, query: str) -> None:
    response = client.get(f"/slow?{query}")
    sent = calendar.timegm(time.strptime(response.one("Date") or "", "%a, %d %b %Y %H:%M:%S GMT"))
    assert 0 <= sent - int(response.one("X-Now") or 0) < 5


def test_early_hints_in_bytes(client: RawClient) -> None:
    client.request("/hints")
    for expected in [("Link", "</a.css>; rel=preload"), ("X-Text", "b")], [("Link", "</b.css>")]:
        response = client._read_head()
        assert (response.status, response.headers) == (103, expected)
    assert client.read_response().body == b"x"


def test_a_range_is_read_and_nothing_before_it(client: RawClient, tmp_path: Path) -> None:
    """Werkzeug seeks where it can."""
    size = 3 * 1024**3
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size - 8)
        file.write(b"the end.")
    before = int(client.get("/bytes_read").body)
    client.request(f"/ranged?{quote(str(path))}", headers="Range: bytes=-8\r\n")
    response = client.read_response()
    assert (response.status, response.body) == (206, b"the end.")
    assert response.one("Content-Range") == f"bytes {size - 8}-{size - 1}/{size}"
    client.request(f"/ranged?{quote(str(path))}", headers=f"Range: bytes={size // 2}-{size // 2 + 99999}\r\n")
    assert client.read_response().body == bytes(100_000)
    assert int(client.get("/bytes_read").body) - before < 50 * 1024**2


def test_files_of_proc_are_whole(site: Server, client: RawClient) -> None:
    response = client.get("/wrapped?/proc/self/status")
    assert response.status == 200
    assert response.body.startswith(b"Name:")
    assert b"\nVmRSS:" in response.body
    assert response.body.endswith(b"\n")
    for path in "/proc/version", "/proc/cpuinfo", "/sys/kernel/mm/transparent_hugepage/enabled":
        if Path(path).exists():
            assert len(client.get(f"/wrapped?{path}").body) > 10
            assert client.get(f"/wrapped?{path}", method="HEAD").one("Content-Length") is None
    assert client.get("/wrapped?/dev/null").body == b""
    assert client.get("/whole").body == b"whole\n"
    # Werkzeug asks the kernel for the size and declares it: the log says what that costs.
    assert client.get("/ranged?/proc/version").body == b""
    site.wait_for_log(TOO_LONG)


def test_an_empty_file_has_the_length_zero(client: RawClient, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    response = client.get(f"/wrapped?{tmp_path}/empty")
    assert (response.framing, response.body) == ("length", b"")
    assert client.get(f"/wrapped?{tmp_path}/empty", method="HEAD").one("Content-Length") == "0"


def test_whatever_a_client_sends_the_json_of_the_access_log_is_valid(site: Server, client: RawClient) -> None:
    every = bytes(octet for octet in range(1, 256))
    allowed = bytes(octet for octet in every if (octet >= 0x20 and octet != 0x7F) or octet == 9).strip()
    user = base64.b64encode(every.replace(b":", b"") + b":x")
    ways = [
        ("every", allowed, every),
        ("quote", b'"', b'"'),
        ("forged", b'x","status":999,"y":"', b'","a":"'),
        ("cut", b'ab"c', b"\\"),
    ]
    for name, header, path in ways:
        client.send(
            b"GET /json-%b%b HTTP/1.1\r\nHost: t\r\nUser-Agent: %b\r\nX-Own: %b\r\nAuthorization: Basic %b\r\n\r\n"
            % (name.encode(), quote(path).encode(), header, header, user)
        )
        assert client.read_response().status == 200
    lines = access_lines(site, len(ways), '{"path":"/json-')
    for (name, header, path), line in zip(ways, lines, strict=True):
        fields = json.loads(line)
        readable = header.decode("utf-8", "backslashreplace")
        assert fields["path"] == f"/json-{name}" + path.decode("utf-8", "backslashreplace")
        assert (fields["agent"], fields["own"], fields["cut"]) == (readable, readable, readable[:3])
        assert fields["out"] == readable
        assert fields["user"] == every.replace(b":", b"").decode("utf-8", "backslashreplace")
        assert fields["status"] == 200
        assert line.isascii()
    assert r'"agent":"\u0022"' in lines[1]


def test_https_at_the_http_port_is_one_line_that_says_so(site: Server, connect: Connect) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="shop.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    assert hello.startswith(b"\x16\x03")
    before = len(site.log.lines)
    for pieces in (
        [hello],
        [hello],
        [hello[:1], hello[1:]],
        [hello[:2], hello[2:]],
        [hello + b"\r\n\r\n"],
        [hello[:9]],
    ):
        client = RawClient(site.address)
        for piece in pieces:
            client.offer(piece)
        response = client.read_response()
        assert response.status == 400
        assert response.closes
        assert "http://" in response.text
        client.close()
    client = connect(site.address)
    client.send(b"GET / HTTP/1.1\r\nX: \x16\x03\r\n\r\n")  # is no such thing
    assert client.read_response().status == 400
    site.wait_for_log("refused with 400: (?!HTTPS)", after=before)
    lines = [line for line in site.log.text.split("\n")[before:] if "HTTPS was sent to an HTTP port" in line]
    assert len(lines) == 1
    assert lines[0].endswith("set certfile and keyfile to serve HTTPS here")
    assert "127.0.0.1" in lines[0]


def test_a_101_is_sent_without_the_headers_of_its_connection(site: Server) -> None:
    """Nothing here can speak the new protocol: the client sees the end, not a fault of the server's."""
    with RawClient(site.address) as client:
        client.request("/switch", headers="Connection: Upgrade\r\nUpgrade: websocket\r\n")
        assert client.read_interim() == 101
        client.expect_close()
