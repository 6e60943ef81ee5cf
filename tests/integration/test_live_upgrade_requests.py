"""An application takes the socket of an upgrade request: WebSockets, and whatever follows ``Upgrade`` (RFC 9110 §7.8).

No library is needed: the application echoes bytes (tests/support/upgradeapps.py).
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from server import Server, Start, children, is_alive, is_worker, wait_until
from upgradeclient import ASKS, FIN, UpgradeClient, certificate_flags, issue
from uwsgipacket import packet

# The ways of the bytes: the client's own socket; a socket pair since bytes came with the request; one since TLS.
PLAIN, EARLY, TLS = "plain", "early", "tls"
CLASSES = ["threads", "gevent"]
THREADS = ("--threads", "40")
DEBUG = ("--log-level", "debug")

Open = Callable[..., UpgradeClient]


@pytest.fixture(scope="session", params=CLASSES)
def worker_class(request: pytest.FixtureRequest) -> str:
    """The classes that can hold a connection; `sync` has tests of its own."""
    return str(request.param)


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate's directory, and a client's context that trusts it."""
    directory = tmp_path_factory.mktemp("certificates")
    return directory, issue(directory)


@pytest.fixture(params=[PLAIN, EARLY, TLS])
def way(request: pytest.FixtureRequest) -> str:
    """The way of the bytes between client and application."""
    return str(request.param)


@pytest.fixture
def flags(way: str, trust: tuple[Path, ssl.SSLContext]) -> tuple[str, ...]:
    """The flags of a server for this way."""
    return (*THREADS, *DEBUG, *(certificate_flags(trust[0]) if way == TLS else ()))


@pytest.fixture
def served(shared_servers: Start, flags: tuple[str, ...]) -> Iterator[Server]:
    """The shared server of this way."""
    found = shared_servers("upgradeapps:app", *flags)
    before = len(found.log.lines)
    yield found
    found.check(before)


@pytest.fixture
def connected(way: str, trust: tuple[Path, ssl.SSLContext]) -> Iterator[Open]:
    """Open a connection without asking anything."""
    with ExitStack() as stack:
        context = trust[1] if way == TLS else None
        yield lambda server: stack.enter_context(UpgradeClient(server.address, context))


@pytest.fixture
def upgraded(way: str, connected: Open) -> Open:
    """Open an upgraded connection, with its first bytes on the way in `EARLY`."""

    def connect(server: Server, target: str = "/echo") -> UpgradeClient:
        client = connected(server)
        client.upgrade(target, early=b"early\n" if way == EARLY else b"")
        if way == EARLY:
            assert client.read(6) == b"early\n"
        return client

    return connect


def status(server: Server) -> Any:
    """Return the figures of ``wsgiservctl status --json``."""
    command = [sys.executable, "-m", "wsgiserv.ctl", "--pid", str(server.pid), "status", "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=15).stdout)


def worker_of(server: Server) -> int:
    """Return the only worker's process id."""
    [found] = [pid for pid in server.workers() if is_worker(pid)]
    return found


def held_by(pid: int) -> tuple[int, int]:
    """Return the descriptors and the threads of a process."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


# ---- taking the socket -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "view",
    [
        *("echo", "nothing", "stop", "closed", "generated", "polled", "filed", "duplicated", "in_thread", "hinted"),
        *("echo_kept", "forked"),
    ],
)
def test_the_application_talks_with_the_client_until_one_ends(served: Server, upgraded: Open, view: str) -> None:
    """In each of the ways in which libraries use a socket, and in which an application ends."""
    client = upgraded(served, f"/{view}")
    client.talk(b"hello\n")
    client.talk(b"x" * 300_000 + b"\n")
    client.end()
    assert client.read_end() == (FIN, b"bye\n")
    if view == "forked":
        with UpgradeClient(served.address, getattr(client.sock, "context", None)) as other:
            assert other.get("/reap").text == "reaped"


@pytest.mark.parametrize("view", ["echo", "filed", "duplicated", "detached", "in_thread", "forked"])
def test_the_end_of_the_call_is_the_end_of_the_connection(served: Server, upgraded: Open, view: str) -> None:
    """Though files, duplicates, threads and children of the application still have the descriptor."""
    client = upgraded(served, f"/{view}")
    client.talk(b"quit\n")
    assert client.read_end()[0] == FIN
    if view == "forked":
        with UpgradeClient(served.address, getattr(client.sock, "context", None)) as other:
            assert other.get("/reap").text == "reaped"


def test_a_client_may_half_close_and_read_on(served: Server, upgraded: Open) -> None:
    client = upgraded(served)
    client.send(b"last words\n")
    client.end()
    assert client.read_end() == (FIN, b"last words\nbye\n")


def test_bytes_that_come_before_the_101_are_not_lost(served: Server, connected: Open) -> None:
    """They may lie behind the head, or come while the application has not begun to read."""
    client = connected(served)
    client.ask(early=b"one\n")
    client.send(b"two\n")
    assert client.read_interim() == 101
    assert client.read(8) == b"one\ntwo\n"
    client.talk(b"three\n")


@pytest.mark.parametrize(("view", "what"), [("fail_before", 500), ("fail_after", 101)])
def test_an_exception_is_logged_once(
    start: Start, flags: tuple[str, ...], connected: Open, view: str, what: int
) -> None:
    """Before the first use it is answered with 500; after it the connection ends."""
    server = start("upgradeapps:app", *flags, expect=("WS1691", "Traceback"))
    client = connected(server)
    client.ask(f"/{view}")
    if what == 101:
        assert client.read_interim() == 101
        assert client.read_end() == (FIN, b"")
    else:
        assert client.read_response().status == what
    server.wait_for_log("ValueError: ")
    assert connected(server).get("/hello").status == 200
    assert server.log.text.count("WS1691") == 1


def test_a_client_that_resets_is_no_fault(served: Server, upgraded: Open) -> None:
    """At any moment: while the application waits, and while it sends."""
    for size in (0, 100, 3_000_000):
        client = upgraded(served)
        client.send(b"x" * size)
        sock = client.sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    wait_until(lambda: status(served)["server"]["detached"] == 0, "all are gone")


def test_a_detached_socket_is_closed_when_its_call_has_ended(served: Server, upgraded: Open, connected: Open) -> None:
    client = upgraded(served, "/echo_kept")
    client.talk(b"quit\n")
    assert client.read_end()[0] == FIN
    said = connected(served).get("/use_again").text
    assert said.startswith("Bad file descriptor; Bad file descriptor; ")
    assert said.endswith("; -1; None")  # fileno() and close(), as of any closed socket


# ---- not taking it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [PLAIN, TLS], indirect=True)
def test_what_only_describes_the_socket_does_not_take_it(served: Server, connected: Open) -> None:
    client = connected(served)
    for _ in range(2):  # the connection is kept
        client.ask("/describe")
        found = client.read_response().text.split("\n")
        assert found[:3] == ["wsgiserv.socket: True", "gunicorn.socket: True", "<wsgiserv.socket>"]
        assert found[3:5] == [repr(client.sock.getsockname()), repr(tuple(served.address))]
        assert found[5:] == ["1", "body: b''"]


@pytest.mark.parametrize(
    ("headers", "is_upgrade"),
    [
        (ASKS, True),
        ("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n", True),
        ("connection: upgrade\r\nupgrade: h2c, echo\r\n", True),
        ("Connection: keep-alive\r\nConnection: upgrade\r\nUpgrade: echo\r\n", True),
        ("", False),
        ("Upgrade: echo\r\n", False),
        ("Connection: keep-alive\r\nUpgrade: echo\r\n", False),
        ("Connection: Upgrade\r\n", False),
        ("Connection: Upgrade\r\nUpgrade: \r\n", False),
        ("Connection: upgraded\r\nUpgrade: echo\r\n", False),
    ],
)
@pytest.mark.parametrize("way", [PLAIN], indirect=True)
def test_the_socket_is_there_on_an_upgrade_request_only(
    served: Server, connected: Open, headers: str, is_upgrade: bool
) -> None:
    """RFC 9110 §7.8: Upgrade without Connection: upgrade is not for this hop."""
    client = connected(served)
    client.ask("/describe", headers=headers)
    assert client.read_response().text.startswith(f"wsgiserv.socket: {is_upgrade or 'none'}")


@pytest.mark.parametrize("way", [PLAIN], indirect=True)
def test_http10_has_no_upgrade(served: Server, connected: Open) -> None:
    """RFC 9110 §7.8: a server must ignore it there."""
    client = connected(served)
    client.send(f"GET /describe HTTP/1.0\r\n{ASKS}\r\n".encode())
    assert "wsgiserv.socket: none" in client.read_end()[1].decode()


@pytest.mark.parametrize("way", [PLAIN], indirect=True)
def test_a_request_with_a_body_is_read_first(served: Server, connected: Open) -> None:
    client = connected(served)
    client.ask("/describe", method="POST", headers=f"{ASKS}Content-Length: 4\r\n", early=b"bodyearly")
    answer = client.read_response().text
    assert "wsgiserv.socket: True" in answer
    assert "body: b'body'" in answer
    client = connected(served)
    client.upgrade(method="POST", headers=f"{ASKS}Content-Length: 4\r\n", early=b"bodyearly")
    assert client.read(5) == b"early"


def test_requests_behind_a_refused_upgrade_are_answered(served: Server, connected: Open) -> None:
    """The bytes behind it are the next requests."""
    client = connected(served)
    client.ask("/refuse", early=b"GET /wait?0 HTTP/1.1\r\nHost: a\r\n\r\nGET /refuse HTTP/1.1\r\nHost: a\r\n\r\n")
    answers = [client.read_response() for _ in range(3)]
    assert [(answer.status, answer.text) for answer in answers] == [
        (400, "no upgrade\n"),
        (200, "waited"),
        (400, "no upgrade\n"),
    ]
    client.upgrade()
    client.talk(b"at last\n")


def test_a_head_request_may_ask_for_it(served: Server, connected: Open) -> None:
    client = connected(served)
    client.ask("/describe", method="HEAD")
    assert client.read_response("HEAD").status == 200
    client.upgrade(method="HEAD")
    client.talk(b"after HEAD\n")


def test_an_answer_that_has_begun_is_not_given_up(served: Server, connected: Open) -> None:
    client = connected(served)
    client.ask("/begun")
    assert re.fullmatch(r"begun the response has begun \(200 OK\): .*", client.read_response().text)
    assert client.get("/hello").status == 200


def test_the_first_use_comes_too_late_when_the_call_has_ended(served: Server, connected: Open) -> None:
    client = connected(served)
    client.ask("/used_late")
    assert client.read_response().text == "kept"
    assert client.get("/use_late").text == "Bad file descriptor"
    assert client.get("/hello").status == 200


def test_a_large_answer_to_an_upgrade_request_holds_nobody(served: Server, connected: Open) -> None:
    """What is not taken stays as it was: the mode of the socket, too, which its duplicates share."""
    client = connected(served)
    client.ask("/describe")
    client.read_response()
    client.upgrade()
    client.talk(b"x" * 3_000_000)


# ---- sync ------------------------------------------------------------------------------------------------


def test_sync_names_the_class_to_choose(start_unclassed: Start) -> None:
    server = start_unclassed("upgradeapps:app", worker_class="sync", expect=("WS1691", "Traceback"))
    with UpgradeClient(server.address) as client:
        client.ask("/describe")
        assert "wsgiserv.socket: True" in client.read_response().text
        client.ask()
        assert client.read_response().status == 500
        server.wait_for_log(r"RuntimeError: .*worker_class = 'gevent' or 'threads'")
        assert client.get("/hello").status == 200


# ---- other kinds of connections --------------------------------------------------------------------------


def test_a_unix_socket(start: Start, tmp_path: Path) -> None:
    server = start("upgradeapps:app", *THREADS, "-b", "unix:a.sock", bind="none")
    server.wait_for_log("ready")
    with UpgradeClient(f"{tmp_path}/a.sock") as client:
        client.upgrade()
        client.talk(b"over a file\n")
        client.half_close()
        assert client.read_end() == (FIN, b"bye\n")
    with UpgradeClient(f"{tmp_path}/a.sock") as client:
        client.upgrade(early=b"early")
        assert client.read(5) == b"early"
        client.talk(b"quit\n")
        assert client.read_end() == (FIN, b"")


def test_ipv6(start: Start) -> None:
    server = start("upgradeapps:app", *THREADS, "-b", "[::1]:0", bind="none")
    port = int(server.wait_for_log(r"http://\[::1\]:(\d+)")[1])
    with UpgradeClient(("::1", port)) as client:
        client.upgrade(early=b"early")
        assert client.read(5) == b"early"
        client.talk(b"six\n")


def test_behind_a_proxy_protocol_header(start: Start) -> None:
    server = start("upgradeapps:app", *THREADS, "--proxy-protocol", "v1")
    with UpgradeClient(server.address) as client:
        client.send(b"PROXY TCP4 203.0.113.9 127.0.0.1 1234 80\r\n")
        client.upgrade()
        client.talk(b"through a proxy\n")
        client.half_close()
        assert client.read_end() == (FIN, b"bye\n")


def test_the_uwsgi_protocol(start: Start) -> None:
    server = start("upgradeapps:app", *THREADS, "--protocol", "uwsgi")
    asks = {"HTTP_HOST": "a", "HTTP_UPGRADE": "echo", "HTTP_CONNECTION": "upgrade"}
    for version, found in (("HTTP/1.1", "True"), ("HTTP/2.0", "none")):
        with UpgradeClient(server.address) as client:
            client.send(packet(REQUEST_METHOD="GET", REQUEST_URI="/describe", SERVER_PROTOCOL=version, **asks))
            assert f"wsgiserv.socket: {found}" in client.read_end()[1].decode()
    with UpgradeClient(server.address) as client:
        client.send(packet(REQUEST_METHOD="GET", REQUEST_URI="/echo", SERVER_PROTOCOL="HTTP/1.1", **asks))
        assert client.read_interim() == 101
        client.talk(b"behind a proxy\n")
        client.half_close()
        assert client.read_end() == (FIN, b"bye\n")


# ---- what is seen of them --------------------------------------------------------------------------------


def test_status_counts_them_as_detached(served: Server, upgraded: Open) -> None:
    clients = [upgraded(served) for _ in range(3)]
    found = wait_until(
        lambda: (now := status(served))["server"]["detached"] == 3 and now, "three are counted (once a second)"
    )
    [worker] = found["workers"]
    assert worker["detached"] == 3
    assert worker["connections"] >= 3
    assert [request["detached"] for request in worker["in_flight"]] == [True] * 3
    command = [sys.executable, "-m", "wsgiserv.ctl", "--pid", str(served.pid)]
    table = subprocess.run([*command, "status"], capture_output=True, text=True, check=True, timeout=15).stdout
    assert re.search(r"connections \(3 detached\)", table)
    assert re.search(r"CONNECTIONS +DETACHED +IN FLIGHT", table)
    assert len(re.findall(r"GET /echo HTTP/1.1 .*  detached$", table, re.MULTILINE)) == 3
    trace = [*command, "trace", str(worker["pid"])]
    said = subprocess.run(trace, capture_output=True, text=True, check=True, timeout=15).stdout
    assert len(re.findall(r'"GET /echo HTTP/1.1" .* \(an upgraded connection\):', said)) == 3
    for client in clients:
        client.close()
    wait_until(lambda: status(served)["server"]["detached"] == 0, "none is counted any more")


def test_the_access_log_has_one_line_for_each(start: Start, flags: tuple[str, ...], upgraded: Open) -> None:
    server = start("upgradeapps:app", *flags, "--access-logfile", "-")
    for target in ("/echo", "/nothing", "/stop", "/closed"):
        client = upgraded(server, target)
        client.talk(b"a\n")
        client.close()
        server.out.wait_for(rf'"GET {target} HTTP/1.1" 101 0 ')
    assert server.stop() == 0
    assert len(server.out.lines) == 4


@pytest.mark.parametrize("way", [PLAIN], indirect=True)
def test_a_crash_report_names_them(start: Start, upgraded: Open) -> None:
    server = start("upgradeapps:app", *THREADS, expect=("WS1209", r"\[ERROR\]"))
    upgraded(server)
    os.kill(worker_of(server), signal.SIGKILL)
    server.wait_for_log(r'in flight in worker \d+ .*"GET /echo HTTP/1.1" .*, an upgraded connection')


def test_all_threads_held_is_told_once(start_unclassed: Start) -> None:
    server = start_unclassed("upgradeapps:app", "--threads", "2", worker_class="threads", expect=("WS1770",))
    with ExitStack() as stack:
        clients = [stack.enter_context(UpgradeClient(server.address)) for _ in range(3)]
        for client in clients[:2]:
            client.upgrade()
        server.wait_for_log(r"WS1770 worker \d+: 2 threads are held by .*: raise threads, or .*'gevent'")
        clients[2].request("/hello")
        clients[0].talk(b"quit\n")
        assert clients[2].read_response().status == 200
        clients[2].upgrade()
        clients[2].talk(b"a\n")
    server.stop()
    assert server.log.text.count("WS1770") == 1


# ---- time ------------------------------------------------------------------------------------------------


def test_request_timeout_does_not_apply_after_the_first_use(
    start: Start, flags: tuple[str, ...], upgraded: Open, connected: Open
) -> None:
    server = start("upgradeapps:app", *flags, "--request-timeout", "0.5", expect=("WS1720", "WS1752"))
    client = upgraded(server)
    late = connected(server)
    late.ask("/wait?1")
    assert late.read_response().status == 504  # later than the other's time
    client.talk(b"still here\n")
    client.end()
    assert client.read_end() == (FIN, b"bye\n")


@pytest.mark.parametrize("way", [PLAIN, TLS], indirect=True)
def test_a_worker_whose_threads_are_all_held_is_not_stuck(
    start: Start, flags: tuple[str, ...], upgraded: Open, worker_class: str
) -> None:
    server = start("upgradeapps:app", *flags[2:], "--threads", "1", "--timeout", "1", expect=("WS1770",))
    client = upgraded(server)
    pid = worker_of(server)
    with UpgradeClient(server.address, getattr(client.sock, "context", None)) as other:
        other.request("/wait?2.5")
        if worker_class == "gevent":
            assert other.read_response().text == "waited"
        else:
            server.wait_for_log("WS1770")
        client.sock.settimeout(2.5)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)  # quiet for longer than `timeout`
        client.sock.settimeout(15.0)
        client.talk(b"quit\n")
        assert worker_of(server) == pid


# ---- the end of the worker -------------------------------------------------------------------------------


def test_at_a_reload_the_reading_side_ends(
    start: Start, flags: tuple[str, ...], upgraded: Open, connected: Open
) -> None:
    """The application finds the end of the data, can still say its last words, and the client sees a FIN."""
    server = start("upgradeapps:app", *flags)
    clients = [upgraded(server, f"/{view}") for view in ("echo", "polled", "filed", "in_thread", "stop")]
    server.reload()
    assert [client.read_end() for client in clients] == [(FIN, b"bye\n")] * 5
    new = upgraded(server)
    new.talk(b"the new worker\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_at_a_stop_each_ends_by_fin(
    start: Start, flags: tuple[str, ...], upgraded: Open, number: signal.Signals
) -> None:
    server = start("upgradeapps:app", *flags)
    client = upgraded(server)
    client.talk(b"a\n")
    server.send_signal(number)
    end, said = client.read_end()
    assert end == FIN
    assert said == (b"bye\n" if number == signal.SIGTERM else said)
    client.close()
    assert server.wait() == 0


def test_max_requests_ends_them_with_their_worker(start: Start, flags: tuple[str, ...], upgraded: Open) -> None:
    server = start("upgradeapps:app", *flags, "--max-requests", "2")
    client = upgraded(server)
    context = getattr(client.sock, "context", None)
    for _ in range(2):
        with UpgradeClient(server.address, context) as other:
            assert other.get("/hello").status == 200
    assert client.read_end() == (FIN, b"bye\n")


def test_what_does_not_end_in_time_is_closed_by_fin(
    start: Start, flags: tuple[str, ...], connected: Open, way: str
) -> None:
    server = start("upgradeapps:app", *flags, "--graceful-timeout", "1", expect=("WS1771",))
    client = connected(server)
    client.upgrade("/deaf", early=b"early" if way == EARLY else b"")
    client.send(b"unread bytes, which would make a reset of a plain close")
    server.send_signal(signal.SIGTERM)
    assert client.read_end() == (FIN, b"")
    server.wait_for_log(r"WS1771 worker \d+: 1 upgraded connection is closed: .*graceful_timeout \(1 s\)")
    assert server.wait() == 0


def test_the_masters_death_ends_them(start: Start, flags: tuple[str, ...], upgraded: Open) -> None:
    server = start("upgradeapps:app", *flags, expect=(r"master.*(gone|lost)", r"\[WARNING\]"))
    client = upgraded(server)
    workers = [pid for each in server.workers() for pid in (each, *children(each))]
    os.kill(server.pid, signal.SIGKILL)
    assert client.read_end() == (FIN, b"bye\n")
    client.close()
    wait_until(lambda: not any(map(is_alive, workers)), "the workers have left")
    server.process.wait()


def test_last_words_reach_a_client_that_talks_on(start: Start, flags: tuple[str, ...], connected: Open) -> None:
    """Once its reading side has ended, Linux resets a connection for each byte that comes behind its FIN.

    What the client has not received by then would be lost.
    """
    server = start("upgradeapps:app", *flags)
    client = connected(server)
    client.upgrade("/last_words?4000000")
    server.send_signal(signal.SIGHUP)
    first = client.read(1)  # it has begun to send
    client.sock.sendall(b"are you there?\n")
    over = threading.Event()
    over.wait(0.3)  # while nothing is read
    client.sock.sendall(b"hello?\n")
    end, rest = client.read_end()
    assert (end, len(first + rest)) == (FIN, 4_000_000)


def test_a_client_that_resets_does_not_hold_a_leaving_worker(
    start: Start, flags: tuple[str, ...], connected: Open
) -> None:
    server = start("upgradeapps:app", *flags)
    client = connected(server)
    client.upgrade("/last_words?4000000")
    old = worker_of(server)
    server.send_signal(signal.SIGHUP)
    client.read(1)  # it has begun to send
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.sock.close()
    wait_until(lambda: not is_worker(old), "the old worker has left")


@pytest.mark.parametrize("way", [PLAIN], indirect=True)
def test_200_idle_ones_end_by_fin_while_new_ones_connect(start_unclassed: Start, upgraded: Open) -> None:
    server = start_unclassed("upgradeapps:app", *DEBUG, worker_class="gevent")
    clients = [upgraded(server) for _ in range(200)]
    wrong: list[str] = []
    over = threading.Event()

    def connect() -> None:
        while not over.is_set():
            try:
                with UpgradeClient(server.address) as new:
                    new.upgrade()
                    new.send(b"quit\n")
                    if new.read_end()[0] != FIN:
                        wrong.append("reset")
            except Exception as error:
                wrong.append(repr(error))

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        server.reload()
    finally:
        over.set()
        thread.join()
    assert {client.read_end() for client in clients} == {(FIN, b"bye\n")}
    assert wrong == []


# ---- nothing is left -------------------------------------------------------------------------------------


def test_nothing_is_left_of_many(start: Start, flags: tuple[str, ...], connected: Open, trust: Any, way: str) -> None:
    """Neither descriptors nor threads, however they end."""
    server = start("upgradeapps:app", *flags)
    context = trust[1] if way == TLS else None
    early = b"early\n" if way == EARLY else b""

    def one(view: str, end: str) -> None:
        with UpgradeClient(server.address, context) as client:
            client.upgrade(view, early=early)
            assert client.read(len(early)) == early
            if end == "quit":
                client.talk(b"quit\n")
                assert client.read_end()[0] == FIN
            elif end == "reset":
                client.reset()

    def round_of(count: int) -> None:
        for _ in range(count):
            for view in ("/echo", "/stop", "/closed", "/polled"):
                for end in ("quit", "close", "reset"):
                    one(view, end)

    round_of(3)
    pid = worker_of(server)
    wait_until(lambda: status(server)["server"]["detached"] == 0, "all have ended")
    fds, threads = wait_until(lambda: held_by(pid), "figures")
    round_of(20)
    wait_until(lambda: status(server)["server"]["detached"] == 0, "all have ended")
    wait_until(lambda: held_by(pid)[0] <= fds, f"no descriptor more than {fds}, but {held_by(pid)}")
    assert held_by(pid)[1] <= max(threads, 42)


@pytest.mark.parametrize("way", [PLAIN], indirect=True)
def test_half_open_upgrades_cost_nothing_that_stays(start: Start, connected: Open) -> None:
    """Heads that never end, and upgrades that never send a byte, up to the limit of connections, and beyond it."""
    flags = ("--worker-connections", "300", "--threads", "400", "--header-timeout", "1")
    server = start("upgradeapps:app", *flags, expect=("WS1550", r"\[WARNING\]"))
    assert connected(server).get("/hello").status == 200
    pid = worker_of(server)
    fds = held_by(pid)[0]
    with ExitStack() as stack:
        clients = [stack.enter_context(UpgradeClient(server.address)) for _ in range(400)]
        for client in clients[:200]:
            client.ask()
        for client in clients[200:]:
            client.offer(f"GET /echo HTTP/1.1\r\nHost: a\r\n{ASKS}".encode())
        for client in clients[:200]:
            assert client.read_interim() == 101
        for client in clients[200:]:
            assert client.read_end()[0] == FIN  # header_timeout, or room for others
        with UpgradeClient(server.address) as other:
            assert other.get("/hello").status == 200
        clients[0].talk(b"still here\n")
    wait_until(lambda: status(server)["server"]["detached"] == 0, "all have ended")
    wait_until(lambda: held_by(pid)[0] <= fds + 1, f"no descriptor more than {fds}, but {held_by(pid)}")
    assert worker_of(server) == pid
