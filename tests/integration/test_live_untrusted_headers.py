"""Forwarded headers of peers that are not trusted: passed on as by gunicorn until `forwarded_allow_ips` is set."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest
from gevents import needs_gevent_of_gunicorn
from server import Server, Start, wait_until
from test_live_proxies import STRANGER, TRUSTED, V1, From
from test_live_uwsgi import SPOKEN, packet

NOT_SET = "WS1077"
HEADERS = {
    "X-Forwarded-For": "203.0.113.9, 198.51.100.1",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Protocol": "ssl",
    "X-Forwarded-Ssl": "on",
    "X-Forwarded-Host": "out.example:8443",
    "X-Forwarded-Port": "8443",
    "X-Forwarded-Prefix": "/shop",
    "Forwarded": 'for="[2001:db8::9]:4711";proto=https;host=rfc.example',
    "X-Real-IP": "203.0.113.9",
    "X-Request-Id": "theirs",
}
ALL = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
# Differs from connection to connection, or from request to request.
CHANGES = {"REMOTE_PORT", "wsgiserv.request_id"}
EVERYTHING = ("--forwarded-headers", "for,proto,host,port,prefix")


def key_of(name: str) -> str:
    return "HTTP_" + name.upper().replace("-", "_")


KEYS = {key_of(name): value for name, value in HEADERS.items()}


def added(environ: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Return what headers have added to an environ, which differs in nothing else."""
    fixed = plain.keys() - CHANGES
    assert {key: environ[key] for key in fixed} == {key: plain[key] for key in fixed}
    return {key: value for key, value in environ.items() if key not in plain}


# ---- as long as it is not set -----------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [(), EVERYTHING, ("--forwarded-headers", "forwarded")], ids=["", "all", "forwarded"])
def test_each_one_passes_and_means_nothing(shared_servers: Start, asked: tuple[str, ...]) -> None:
    server = shared_servers("apps:app", *asked, expect=(NOT_SET,))
    with From(STRANGER, server) as client:
        plain = client.environ()
        assert plain["wsgi.url_scheme"] == "http"
        for name, value in HEADERS.items():
            for _ in range(2):  # on a kept connection
                environ = client.environ(f"{name}: {value}\r\n")
                assert added(environ, plain) == {key_of(name): value}
                assert environ["wsgiserv.request_id"] != value
                assert environ["REMOTE_PORT"] == client.port
        assert added(client.environ(ALL), plain) == KEYS


def test_with_a_body_and_from_the_cache_of_heads(shared_servers: Start) -> None:
    server = shared_servers("apps:app", expect=(NOT_SET,))
    chunked = f"POST /environ HTTP/1.1\r\nHost: test\r\n{ALL}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    with From(STRANGER, server) as client:
        for _ in range(3):
            client.send(chunked.encode())
            environ = client.read_response().json()["environ"]
            assert environ["CONTENT_LENGTH"] == "2"
            assert environ.keys() >= KEYS.keys()
        for _ in range(130):  # of 64 new heads one is kept
            client.send(f"GET /environ HTTP/1.1\r\nHost: test\r\n{ALL}\r\n".encode())
            assert client.read_response().json()["environ"].keys() >= KEYS.keys()


def test_a_repeated_one_is_joined_as_any_field_is(shared_servers: Start) -> None:
    server = shared_servers("apps:app", expect=(NOT_SET,))
    with From(STRANGER, server) as client:
        environ = client.environ("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.9\r\n")
    assert environ["HTTP_X_FORWARDED_FOR"] == "6.6.6.6, 203.0.113.9"
    assert environ["REMOTE_ADDR"] == STRANGER


@pytest.mark.parametrize(
    "asked", [(), ("--forwarder-headers", "*"), ("--header-map", "dangerous")], ids=["", "any", "dangerous"]
)
def test_no_name_becomes_a_cgi_variable(shared_servers: Start, asked: tuple[str, ...]) -> None:
    server = shared_servers("apps:app", *asked, expect=(NOT_SET,))
    with From(STRANGER, server) as client:
        plain = client.environ()
        for name in ("SCRIPT_NAME", "PATH_INFO", "REMOTE_USER", "REMOTE_ADDR", "HTTPS", "X_Forwarded_Prefix"):
            for spelling in (name, name.replace("_", "-")):
                found = added(client.environ(f"{spelling}: /environ\r\n{ALL}"), plain)
                assert all(key.startswith("HTTP_") for key in found), spelling


def test_a_trusted_peer_is_handled_as_ever(shared_servers: Start) -> None:
    for given in ((), ("--forwarded-allow-ips", "127.0.0.1,::1")):
        server = shared_servers("apps:app", *EVERYTHING, *given, expect=(NOT_SET,))
        with From(TRUSTED, server) as client:
            environ = client.environ(ALL, "/shop/environ")
        assert environ["REMOTE_ADDR"] == "198.51.100.1"
        assert environ["wsgi.url_scheme"] == "https"
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", "/environ")
        assert environ["HTTP_HOST"] == "out.example:8443"
        assert environ["wsgiserv.request_id"] == "theirs"
        assert environ.keys() >= KEYS.keys()


# ---- once it is set ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [(), EVERYTHING], ids=["", "all"])
@pytest.mark.parametrize("value", ["127.0.0.1,::1", "192.0.2.1"])
def test_each_one_is_removed(shared_servers: Start, value: str, asked: tuple[str, ...]) -> None:
    server = shared_servers("apps:app", "--forwarded-allow-ips", value, *asked)
    with From(STRANGER, server) as client:
        plain = client.environ()
        for name, text in HEADERS.items():
            assert added(client.environ(f"{name}: {text}\r\nX-Other: kept\r\n"), plain) == {"HTTP_X_OTHER": "kept"}
        assert added(client.environ(ALL), plain) == {}
    server.check()


FLAG = ("--forwarded-allow-ips",)


@pytest.mark.parametrize(
    ("arguments", "env", "conf"),
    [
        ((*FLAG, ""), {}, ""),
        ((*FLAG, "127.0.0.1,::1"), {}, ""),
        ((), {}, "forwarded_allow_ips = ''\n"),
        ((), {}, "forwarded_allow_ips = []\n"),
        ((), {}, "forwarded_allow_ips = '127.0.0.1,::1'\n"),
        ((), {}, "forwarded_allow_ips = ['127.0.0.1', '::1']\n"),
        ((), {"FORWARDED_ALLOW_IPS": "127.0.0.1"}, ""),
        ((), {"WSGISERV_CMD_ARGS": "--forwarded-allow-ips 127.0.0.1,::1"}, ""),
        ((), {"GUNICORN_CMD_ARGS": "--forwarded-allow-ips=127.0.0.1"}, ""),
        ((*FLAG, "192.0.2.1"), {"FORWARDED_ALLOW_IPS": "*"}, "forwarded_allow_ips = '*'\n"),
    ],
)
def test_every_way_to_set_it_counts(
    start_unclassed: Start, arguments: tuple[str, ...], env: dict[str, str], conf: str
) -> None:
    server = start_unclassed(
        "apps:app", "-c", "conf.py", *arguments, env=env, files={"conf.py": conf}, expect=("using GUNICORN_CMD_ARGS",)
    )
    with From(STRANGER, server) as client:
        assert not KEYS.keys() & client.environ(ALL).keys()
        server.wait_for_log(rf"\[INFO\] {re.escape(STRANGER)} is not in forwarded_allow_ips")


@pytest.mark.parametrize(
    ("env", "conf"),
    [({"FORWARDED_ALLOW_IPS": ""}, ""), ({}, "forwarded_allow_ips = None\n"), ({}, "proxy_allow_ips = '*'\n")],
)
def test_what_sets_nothing(start_unclassed: Start, env: dict[str, str], conf: str) -> None:
    server = start_unclassed("apps:app", "-c", "conf.py", env=env, files={"conf.py": conf}, expect=(NOT_SET,))
    with From(STRANGER, server) as client:
        assert client.environ(ALL).keys() >= KEYS.keys()


def test_a_reload_changes_it(start: Start) -> None:
    server = start("apps:app", "-c", "conf.py", files={"conf.py": ""}, expect=(NOT_SET,))

    def reload(conf: str) -> None:
        before = server.workers()
        (server.directory / "conf.py").write_text(conf)
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: not set(before) & set(server.workers()), "the old workers have left")

    def passes() -> bool:
        with From(STRANGER, server) as client:
            return "HTTP_X_FORWARDED_FOR" in client.environ(ALL)

    assert passes()
    with From(STRANGER, server) as kept:  # a worker that comes with the reload takes it over
        assert "HTTP_X_FORWARDED_FOR" in kept.environ(ALL)
        reload("forwarded_allow_ips = '127.0.0.1'\n")
        assert not passes()
        kept.send(f"GET /environ HTTP/1.1\r\nHost: test\r\n{ALL}\r\n".encode())
        assert "HTTP_X_FORWARDED_FOR" not in kept.read_response().json()["environ"]
    reload(f"forwarded_allow_ips = '{STRANGER}'\nforwarded_headers = 'for'\n")
    with From(STRANGER, server) as client:
        assert client.environ(ALL)["REMOTE_ADDR"] == "198.51.100.1"
    reload("")
    assert passes()
    assert server.log.text.count(NOT_SET) == 1


# ---- the warning ------------------------------------------------------------------------------------------


def warnings(server: Server) -> list[str]:
    return [line for line in server.log.lines if NOT_SET in line]


@pytest.mark.parametrize("more", [(), ("--preload",)], ids=["", "preload"])
def test_one_warning_per_server_says_what_to_set(start: Start, more: tuple[str, ...]) -> None:
    server = start("apps:app", "-w", "3", *more, expect=(NOT_SET,))
    server.wait_for_log("ready: 3 workers")
    seen: set[str] = set()

    def ask_another() -> bool:
        with From(STRANGER, server) as client:
            seen.add(client.get("/pid", headers=ALL).text)
        return len(seen) >= 3

    wait_until(ask_another, "three workers have answered")
    server.wait_for_log(NOT_SET)
    # Their successors say nothing either. The report of a worker is read before its exit is noted.
    before = server.workers()
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: not set(before) & set(server.workers()), "the old workers have left")
    seen.clear()
    wait_until(ask_another, "their successors have answered")
    assert server.stop() == 0
    [line] = warnings(server)
    assert "[WARNING]" in line
    assert f'set forwarded_allow_ips = "{STRANGER}"' in line
    assert 'forwarded_allow_ips = ""' in line
    for name in HEADERS:
        assert name.lower() in line.lower()
    # The value is one that works.
    [advised] = re.findall(r'is your proxy, set forwarded_allow_ips = ("[^"]+")', line)
    follows = start("apps:app", "-c", "conf.py", files={"conf.py": f"forwarded_allow_ips = {advised}\n"})
    with From(STRANGER, follows) as client:
        assert client.environ(ALL)["wsgi.url_scheme"] == "https"


def test_nothing_is_said_without_a_sign_of_a_proxy(start: Start) -> None:
    """A request id comes from clients of all kinds; a trusted proxy's headers concern nobody else."""
    server = start("apps:app", *EVERYTHING)
    with From(STRANGER, server) as client:
        assert client.environ("X-Request-Id: mine\r\nX_Forwarded_For: 6.6.6.6\r\n")["HTTP_X_REQUEST_ID"] == "mine"
    with From(TRUSTED, server) as client:
        client.environ(ALL, "/shop/environ")
    assert server.stop() == 0
    server.check()


def test_a_name_of_the_configuration_passes_as_well(start: Start) -> None:
    conf = "secure_scheme_headers = {'X-Edge-Tls': 'yes'}\n"
    server = start("apps:app", "-c", "conf.py", files={"conf.py": conf}, expect=(NOT_SET,))
    with From(STRANGER, server) as client:
        plain = client.environ()
        assert added(client.environ("X-Edge-Tls: yes\r\n"), plain) == {"HTTP_X_EDGE_TLS": "yes"}
    server.wait_for_log(rf"\[WARNING\] {NOT_SET} .*X-Edge-Tls of {re.escape(STRANGER)}")


# ---- other protocols --------------------------------------------------------------------------------------


def test_through_the_proxy_protocol(start: Start) -> None:
    """Such a proxy passes on what its clients send, so nobody is advised to trust it."""
    server = start("apps:app", "--proxy-protocol", "v1", "--proxy-allow-from", STRANGER, expect=(NOT_SET,))
    with From(STRANGER, server) as client:
        client.send(V1 + f"GET /environ HTTP/1.1\r\nHost: test\r\n{ALL}\r\n".encode())
        environ = client.read_response().json()["environ"]
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("203.0.113.9", "4711")
    assert environ["wsgi.url_scheme"] == "http"
    assert {key: environ[key] for key in KEYS} == KEYS
    server.wait_for_log(NOT_SET)
    [line] = warnings(server)
    assert "of 203.0.113.9" in line
    assert f"proxy {STRANGER} speaks the PROXY protocol" in line
    assert re.findall(r"forwarded_allow_ips = (\S+)", line) == ['""']


def test_through_uwsgi(start: Start) -> None:
    """The address to trust is the proxy's, not its client's."""
    server = start("apps:app", *SPOKEN, "--uwsgi-allow-from", STRANGER, *EVERYTHING, expect=(NOT_SET,))
    with From(STRANGER, server) as client:
        client.send(packet("/environ", **KEYS))
        environ = client.read_response(http10=True).json()["environ"]
    assert environ["REMOTE_ADDR"] == "203.0.113.9"  # uwsgi's own variable
    assert environ["HTTP_HOST"] == "shop.example"
    assert environ["SCRIPT_NAME"] == ""
    assert {key: environ[key] for key in KEYS} == KEYS
    server.wait_for_log(rf'{NOT_SET} .*set forwarded_allow_ips = "{re.escape(STRANGER)}"')


# ---- beside gunicorn --------------------------------------------------------------------------------------


@pytest.fixture
def gunicorn(start_unclassed: Start) -> Callable[..., Server]:
    """Start gunicorn, with these arguments."""

    def begin(*arguments: str) -> Server:
        command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "--no-control-socket", *arguments, "apps:app"]
        server = start_unclassed(command=command, bind="tcp", expect=(r"Handling signal|\[WARNING\]",))
        server.wait_for_log("Booting worker")
        return server

    return begin


def test_the_environ_is_gunicorns(gunicorn: Callable[..., Server], shared_servers: Start, worker_class: str) -> None:
    names = [*HEADERS, "SCRIPT_NAME", "PATH_INFO", "REMOTE_USER", "X_Forwarded_For", "Script-Name", "Remote-User"]
    needs_gevent_of_gunicorn(worker_class)
    kind = "gthread" if worker_class == "threads" else worker_class
    servers = [gunicorn("-k", kind), shared_servers("apps:app", expect=(NOT_SET,))]
    found = []
    for server in servers:
        changes = {}
        for name in names:
            # gunicorn's sync worker closes after each response
            with From(STRANGER, server) as client:
                plain = client.environ()
            with From(STRANGER, server) as client:
                changes[name] = added(client.environ(f"{name}: {HEADERS.get(name, '/environ')}\r\n"), plain)
            changes[name]["scheme"] = plain["wsgi.url_scheme"]
        found.append(changes)
    assert found[0] == found[1]
    assert found[0]["X-Forwarded-For"]["HTTP_X_FORWARDED_FOR"] == HEADERS["X-Forwarded-For"]
