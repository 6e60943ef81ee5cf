"""The environ: PEP 3333's keys and types, the customary ones, and how the request's bytes become its values."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from cases import check_each
from rawclient import RawClient, Response
from server import Server, Start


def environ_of(client: RawClient, target: str = "/environ", **rest: Any) -> dict[str, Any]:
    response: Response = client.get(target, **rest)
    assert response.status == 200, response
    environ: dict[str, Any] = response.json()["environ"]
    return environ


def test_every_key_that_pep_3333_requires(server: Server, client: RawClient) -> None:
    found = client.get(
        "/environ?a=b", headers="Content-Type: text/x\r\nX-One: 1\r\n", body=b"body", method="POST"
    ).json()
    environ, types = found["environ"], found["types"]
    port = server.address[1]
    assert environ["REQUEST_METHOD"] == "POST"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["PATH_INFO"] == "/environ"
    assert environ["QUERY_STRING"] == "a=b"
    assert environ["CONTENT_TYPE"] == "text/x"
    assert environ["CONTENT_LENGTH"] == "4"
    assert environ["SERVER_PORT"] == str(port)
    assert environ["SERVER_NAME"]
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["HTTP_HOST"] == "test"
    assert environ["HTTP_X_ONE"] == "1"
    assert environ["wsgi.version"] == [1, 0]
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.run_once"] is False
    for key in ("wsgi.input", "wsgi.errors"):
        assert key in environ
    texts = [key for key in environ if key.isupper()]
    assert {types[key] for key in texts} == {"str"}
    assert types["wsgi.version"] == "tuple"


def test_the_customary_keys(server: Server, client: RawClient) -> None:
    environ = environ_of(client, "/environ/a%20b?c=%20d")
    host, port = client.sock.getsockname()
    assert environ["REMOTE_ADDR"] == host
    assert environ["REMOTE_PORT"] == str(port)
    assert environ["RAW_URI"] == "/environ/a%20b?c=%20d"
    assert environ["SERVER_SOFTWARE"].startswith("wsgiserv/")
    assert environ["wsgi.input_terminated"] is True
    assert "wsgi.file_wrapper" in environ


def test_no_content_length_is_made_up(client: RawClient) -> None:
    environ = environ_of(client)
    assert not environ.get("CONTENT_LENGTH")
    assert not environ.get("CONTENT_TYPE")
    assert "HTTP_CONTENT_LENGTH" not in environ
    assert "HTTP_CONTENT_TYPE" not in environ


def test_a_chunked_body_has_no_content_length(client: RawClient) -> None:
    client.send(b"POST /environ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    environ = client.read_response().json()["environ"]
    assert environ["wsgi.input_terminated"] is True
    assert environ.get("CONTENT_LENGTH") in (None, "", "3")


def test_http10_has_its_own_protocol_and_needs_no_host(server: Server) -> None:
    with RawClient(server.address) as client:
        client.send(b"GET /environ HTTP/1.0\r\n\r\n")
        environ = client.read_response(http10=True).json()["environ"]
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.0"
    assert "HTTP_HOST" not in environ


PATHS = [
    ("/environ/a%20b", "/environ/a b"),
    ("/environ/a+b", "/environ/a+b"),
    ("/environ/%41%62", "/environ/Ab"),
    ("/environ/%2F%2f", "/environ///"),
    ("/environ/%25%34%31", "/environ/%41"),  # decoded once
    ("/environ/%2541", "/environ/%41"),
    ("/environ/caf%C3%A9", "/environ/caf\u00c3\u00a9"),  # UTF-8 bytes as latin-1, as PEP 3333 has it
    ("/environ/caf%E9", "/environ/caf\u00e9"),
    ("/environ/%00%0d%0a", "/environ/\x00\r\n"),
    ("//example.com/x", "//example.com/x"),
    ("/environ/../x/./y", "/environ/../x/./y"),  # no normalisation
    ("/environ//x", "/environ//x"),
    ("/environ;a=b", "/environ;a=b"),
    ("/environ/?", "/environ/"),
    ("/", "/"),
]


def test_paths(server: Server) -> None:
    def check(case: tuple[str, str]) -> None:
        raw, path = case
        with RawClient(server.address) as client:
            environ = environ_of(client, raw)
        assert environ["PATH_INFO"] == path
        assert environ["RAW_URI"] == raw
        assert environ["SCRIPT_NAME"] == ""

    check_each(((case[0], case) for case in PATHS if case[0] != "/"), check)


QUERIES = ["", "a=b", "a=%20%zz&b", "?", "a?b", "a/b", "%41", "a=b&a=c;d"]


def test_the_query_is_passed_as_it_is(server: Server) -> None:
    def check(query: str) -> None:
        with RawClient(server.address) as client:
            environ = environ_of(client, "/environ?" + query)
        assert environ["QUERY_STRING"] == query
        assert environ["PATH_INFO"] == "/environ"

    check_each(((query, query) for query in QUERIES), check)


def test_absolute_form_gives_the_path_and_its_authority_wins(client: RawClient) -> None:
    client.send(b"GET http://other.example:81/environ/x?q=1 HTTP/1.1\r\nHost: test\r\n\r\n")
    environ = client.read_response().json()["environ"]
    assert environ["PATH_INFO"] == "/environ/x"
    assert environ["QUERY_STRING"] == "q=1"
    assert environ["HTTP_HOST"] == "other.example:81"


@pytest.mark.parametrize("target", [b"http://other.example", b"http://other.example?q=1", b"HTTP://other.example/"])
def test_absolute_form_without_a_path_is_the_root(client: RawClient, target: bytes) -> None:
    client.send(b"GET " + target + b" HTTP/1.1\r\nHost: test\r\n\r\n")
    assert client.read_response().body == b"hello\n"


def test_options_with_an_asterisk(client: RawClient) -> None:
    client.send(b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n")
    environ = client.read_response().json()["environ"]
    assert environ["REQUEST_METHOD"] == "OPTIONS"
    assert environ["PATH_INFO"] in ("*", "/*", "")
    assert environ["RAW_URI"] == "*"


HOSTS = ["", "a", "a.b.c", "a:8000", "a:", "127.0.0.1:1", "[::1]", "[::1]:80", "a_b", "A-b.C"]


def test_hosts_that_are_right(server: Server) -> None:
    def check(host: str) -> None:
        with RawClient(server.address) as client:
            client.send(f"GET /environ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert client.read_response().json()["environ"]["HTTP_HOST"] == host

    check_each(((host, host) for host in HOSTS), check)


FIELDS = [
    ("X-A: b", "HTTP_X_A", "b"),
    ("x-a:b", "HTTP_X_A", "b"),
    ("X-A: \t b \t ", "HTTP_X_A", "b"),
    ("X-A:", "HTTP_X_A", ""),
    ("X-A:   ", "HTTP_X_A", ""),
    ("X-A: b  c\td", "HTTP_X_A", "b  c\td"),
    ("X-A: a:b:c", "HTTP_X_A", "a:b:c"),
    ("X-A: caf\xe9", "HTTP_X_A", "caf\xe9"),
    ("X-A: \xa0b\xa0", "HTTP_X_A", "\xa0b\xa0"),  # space and tab are trimmed, nothing else
    ("!#$%&'*+-.^`|~: b", "HTTP_!#$%&'*+_.^`|~", "b"),
    ("X-A: b\r\nX-A: c", "HTTP_X_A", "b, c"),
    ("X-A: b\r\nX-B: x\r\nx-a: c", "HTTP_X_A", "b, c"),
    ("Cookie: a=1\r\nCookie: b=2", "HTTP_COOKIE", "a=1; b=2"),
    ("Accept: a/b\r\nAccept: c/d", "HTTP_ACCEPT", "a/b, c/d"),
    ("Content-Type: a/b\r\nContent-Type: a/b", "CONTENT_TYPE", "a/b"),
    ("Proxy: evil", "HTTP_PROXY", "evil"),
]


def test_fields(server: Server) -> None:
    def check(case: tuple[str, str, str]) -> None:
        lines, key, value = case
        with RawClient(server.address) as client:
            client.request("/environ", headers=lines + "\r\n")
            assert client.read_response().json()["environ"][key] == value

    check_each(((case[0], case) for case in FIELDS), check)


def test_underscores_never_shadow_dashes(client: RawClient) -> None:
    headers = "X_Forwarded_For: 1.2.3.4\r\nX-Real: a\r\nX_Real: b\r\nContent_Length: 5\r\n"
    headers += "Transfer_Encoding: chunked\r\n"
    environ = environ_of(client, headers=headers)
    assert environ["HTTP_X_REAL"] == "a"
    assert "HTTP_X_FORWARDED_FOR" not in environ
    assert environ_of(client)["REQUEST_METHOD"] == "GET"


def test_a_hundred_fields_are_taken(client: RawClient) -> None:
    headers = "".join(f"X-{number}: {number}\r\n" for number in range(99))
    environ = environ_of(client, headers=headers)
    assert environ["HTTP_X_98"] == "98"


def test_no_request_sees_another_ones_environ(client: RawClient) -> None:
    first = environ_of(client, "/environ?1", headers="X-Secret: 1\r\nCookie: a=b\r\nContent-Type: x/y\r\n")
    second = environ_of(client, "/environ?2")
    assert first["HTTP_X_SECRET"] == "1"
    assert not {"HTTP_X_SECRET", "HTTP_COOKIE"} & set(second)
    assert not second.get("CONTENT_TYPE")


SPOILER = """
SEEN = []

def app(environ, start_response):
    SEEN.append("spoiled" in environ or environ.get("SCRIPT_NAME") == "/spoiled")
    environ["spoiled"] = True
    environ["SCRIPT_NAME"] = "/spoiled"
    environ["HTTP_HOST"] = "spoiled"
    host = environ.pop("HTTP_ACCEPT", None)
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Accept", str(host))])
    return [repr(any(SEEN)).encode()]
"""


def test_an_application_may_change_its_environ(start: Start) -> None:
    server = start("spoiler:app", files={"spoiler.py": SPOILER})
    with RawClient(server.address) as client:
        for _ in range(3):
            response = client.get("/", headers="Accept: a/b\r\n")
            assert response.body == b"False"
            assert response.one("X-Accept") == "a/b"


@pytest.mark.parametrize(("workers", "expected"), [("1", False), ("2", True)])
def test_multiprocess_tells_the_number_of_workers(
    shared_servers: Start, worker_class: str, workers: str, expected: bool
) -> None:
    server = shared_servers("apps:app", "-w", workers)
    with RawClient(server.address) as client:
        environ = environ_of(client)
    assert environ["wsgi.multiprocess"] is expected
    assert environ["wsgi.multithread"] is (worker_class != "sync")


def test_script_name_from_the_configuration(shared_servers: Start) -> None:
    server = shared_servers("apps:app", "--root-path", "/shop")
    with RawClient(server.address) as client:
        environ = environ_of(client, "/shop/environ/x")
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", "/environ/x")
        assert environ["RAW_URI"] == "/shop/environ/x"


def test_a_trusted_proxy_may_say_https(client: RawClient) -> None:
    assert environ_of(client, headers="X-Forwarded-Proto: https\r\n")["wsgi.url_scheme"] == "https"
    assert environ_of(client, headers="X-Forwarded-Proto: http\r\n")["wsgi.url_scheme"] == "http"
    assert environ_of(client)["wsgi.url_scheme"] == "http"


def test_an_untrusted_peer_may_not_say_https(shared_servers: Start) -> None:
    server = shared_servers("apps:app", "--forwarded-allow-ips", "10.9.9.9")
    with RawClient(server.address) as client:
        assert environ_of(client, headers="X-Forwarded-Proto: https\r\n")["wsgi.url_scheme"] == "http"


def test_over_a_unix_socket(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    server = start("apps:app", "-b", f"unix:{path}", bind="none")
    server.wait_for_log(r"unix:")
    with RawClient(path) as client:
        environ = environ_of(client)
    assert environ["SERVER_NAME"]
    assert isinstance(environ["SERVER_PORT"], str)
    assert isinstance(environ.get("REMOTE_ADDR", ""), str)


def test_over_ipv6(start: Start) -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as problem:
        pytest.skip(f"no IPv6 loopback here: {problem}")
    listener.close()
    server = start("apps:app", "-b", "[::1]:0", bind="none")
    port = int(server.wait_for_log(r"http://\[::1\]:(\d+)")[1])
    with RawClient(("::1", port)) as client:
        environ = environ_of(client)
    assert environ["REMOTE_ADDR"] == "::1"
    assert environ["SERVER_PORT"] == str(port)
