"""Headers named like CGI variables, as they come through a proxy that lets underscores pass, in every worker class."""

from __future__ import annotations

import pytest
from rawclient import RawClient, Response
from server import Server, Start

CGI = (
    *("PATH_INFO", "QUERY_STRING", "REMOTE_USER", "REMOTE_ADDR", "REQUEST_METHOD", "SERVER_NAME", "SERVER_PORT"),
    *("CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_HOST", "RAW_URI", "REQUEST_URI", "AUTH_TYPE", "GATEWAY_INTERFACE"),
    *("wsgi.url_scheme", "HTTPS_ON", "REQUEST_SCHEME"),
)


@pytest.fixture(params=[(), ("--preload",)], ids=["", "preload"])
def preload(request: pytest.FixtureRequest, worker_class: str) -> tuple[str, ...]:
    if request.param and worker_class != "sync":
        pytest.skip("a zygote's workers parse as any others")
    found: tuple[str, ...] = request.param
    return found


def get(server: Server, headers: str, target: str = "/environ") -> Response:
    with RawClient(server.address) as client:
        return client.get(target, headers=headers)


def environ(server: Server, headers: str, target: str = "/environ") -> dict[str, object]:
    response = get(server, headers, target)
    assert response.status == 200, response
    found: dict[str, object] = response.json()["environ"]
    return found


@pytest.mark.parametrize(
    "asked",
    [
        (),
        ("--forwarder-headers", ",".join(CGI)),
        ("--forwarder-headers", "*"),
        ("--header-map", "dangerous"),
        ("--forwarder-headers", "*", "--header-map", "dangerous"),
    ],
    ids=["default", "named", "any", "dangerous", "any and dangerous"],
)
def test_no_header_sets_a_cgi_variable(shared_servers: Start, asked: tuple[str, ...], preload: tuple[str, ...]) -> None:
    server = shared_servers("apps:app", *asked, *preload)
    with RawClient(server.address) as client:
        check_no_header_sets_a_cgi_variable(client)


def check_no_header_sets_a_cgi_variable(client: RawClient) -> None:
    def environ(headers: str) -> dict[str, object]:
        response = client.get("/environ", headers=headers)
        assert response.status == 200, response
        found: dict[str, object] = response.json()["environ"]
        return found

    plain = environ("")
    fixed = {key for key in plain if not key.startswith("HTTP_")} - {"REMOTE_PORT", "wsgiserv.request_id"}
    for name in CGI:
        for spelling in (name, name.lower(), name.title(), name.replace("_", "-"), f"HTTP_{name}"):
            if spelling in ("CONTENT-LENGTH", "CONTENT-TYPE"):
                continue  # these are HTTP's own
            found = environ(f"{spelling}: /admin/users\r\n")
            others = {key for key in found if not key.startswith("HTTP_")} - {"REMOTE_PORT", "wsgiserv.request_id"}
            assert others == fixed, spelling
            assert {key: found[key] for key in fixed} == {key: plain[key] for key in fixed}, spelling
            assert found["HTTP_HOST"] == plain["HTTP_HOST"]


def test_the_name_goes_through_as_any_headers_does(shared_servers: Start, preload: tuple[str, ...]) -> None:
    """As with gunicorn: of a trusted peer, under HTTP_."""
    server = shared_servers("apps:app", *preload)
    found = environ(server, "PATH_INFO: /admin\r\nREMOTE_USER: root\r\n")
    assert (found["PATH_INFO"], found["HTTP_PATH_INFO"]) == ("/environ", "/admin")
    assert "HTTP_REMOTE_USER" not in found  # not named in forwarder_headers
    assert "REMOTE_USER" not in found


def test_of_a_twin_with_dashes_nobody_can_say_whose_it_is(start: Start) -> None:
    server = start("apps:app", "--forwarder-headers", "REMOTE_USER", expect=(r"refused with 400",))
    assert environ(server, "REMOTE_USER: ann\r\n")["HTTP_REMOTE_USER"] == "ann"
    assert environ(server, "Remote-User: bob\r\n")["HTTP_REMOTE_USER"] == "bob"
    assert get(server, "REMOTE_USER: ann\r\nRemote-User: bob\r\n").status == 400
    assert get(server, "Remote-User: bob\r\nREMOTE_USER: ann\r\n").status == 400


@pytest.mark.parametrize(
    ("target", "value", "script_name", "path_info"),
    [
        ("/environ/x", "/environ", "/environ", "/x"),
        ("/environ/x", "/environ/", "/environ", "/x"),
        ("/environ/x", "/environ/x", "/environ/x", ""),
        ("/environ/x", "/", "", "/environ/x"),
        ("/environ/x", "", "", "/environ/x"),
        ("/environ/caf%C3%A9/x", "/environ/caf%C3%A9", "/environ/caf\xc3\xa9", "/x"),
        ("/environ/a%20b/x", "/environ/a%20b", "/environ/a b", "/x"),
    ],
)
def test_script_name_is_a_prefix_of_the_path(
    shared_servers: Start, preload: tuple[str, ...], target: str, value: str, script_name: str, path_info: str
) -> None:
    server = shared_servers("mountedapps:app", *preload)
    found = environ(server, f"SCRIPT_NAME: {value}\r\n", target)
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == (script_name, path_info)


@pytest.mark.parametrize(
    "value",
    [
        *("//evil.example", "javascript:x", "/\\evil.example", "http://evil.example/", "environ", "/envi", "/other"),
        *("/environ?", "/environ#", "/environ//x", "/%2fevil.example", "/environ/%5cx", "/environ x", "/environ, /x"),
        *("/environ%0d%0aX", "/environ/x/y", "/ENVIRON", '"/environ"', "*", "/environ/.."),
    ],
)
def test_anything_else_is_400(shared_servers: Start, preload: tuple[str, ...], value: str) -> None:
    server = shared_servers("apps:app", *preload, expect=(r"refused with 400",))
    response = get(server, f"SCRIPT_NAME: {value}\r\n", "/environ/x")
    assert response.status == 400
    assert b"evil" not in response.body
    with RawClient(server.address) as client:
        assert client.get("/").status == 200


def test_script_name_of_a_stranger_is_dropped(start: Start) -> None:
    server = start("apps:app", "--forwarded-allow-ips", "192.0.2.1")
    for value in ("/environ", "//evil.example", "/other"):
        found = environ(server, f"SCRIPT_NAME: {value}\r\n")
        assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("", "/environ")


def test_script_name_and_the_root_path(start: Start) -> None:
    """Either may have been taken off the path by then."""
    server = start("mountedapps:app", "--root-path", "/a")
    for target, value, expected in (
        ("/a/x", "/a", ("/a", "/x")),
        ("/a/x", "/a/x", ("/a/x", "")),
        ("/x", "/a", ("/a", "/x")),
        ("/b/x", "/b", ("/b", "/x")),
    ):
        found = environ(server, f"SCRIPT_NAME: {value}\r\n", target)
        assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == expected, target
