"""What TLS clients see of a worker that leaves: nothing (issue 12, part 7)."""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import requests
import trustme
from rawclient import RawClient
from server import DEADLINE_S, Server, Start, children, is_alive, wait_until
from test_live_rolling import ctl
from test_live_tls import CERTIFICATE, TLSClient, client_context, issue

# Longer than any test waits: who leaves before has left early.
PATIENT = ("--tls-linger", "40", "--graceful-timeout", "60", "--log-level", "debug")
V1 = b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n"

Connect = Callable[..., TLSClient]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=["", "--preload"])
def preload(request: pytest.FixtureRequest, worker_class: str) -> tuple[str, ...]:
    """Without and with `preload_app`, where it is the first class."""
    if request.param and worker_class != "sync":
        pytest.skip("how contexts reach a zygote's workers does not depend on the class")
    return (request.param,) if request.param else ()


@pytest.fixture
def begin(start: Start, ca: trustme.CA, tmp_path: Path) -> Start:
    """Start a server that speaks TLS, and wait until it is ready."""
    issue(ca, tmp_path)

    def make(*args: str, app: str = "apps:app", **rest: object) -> Server:
        server = start(app, *CERTIFICATE, *args, **rest)
        server.wait_for_log("ready: ")
        return server

    return make


@pytest.fixture
def connect(ca: trustme.CA) -> Iterator[Connect]:
    """Connect to a server and ask once, unless told otherwise; closed at the end."""
    context = client_context(ca)
    with ExitStack() as stack:

        def make(server: Server, first: str = "/") -> TLSClient:
            client = stack.enter_context(TLSClient(server, context))
            if first:
                client.get(first)
            return client

        yield make


def zygotes(server: Server) -> set[int]:
    lines = "\n".join(server.log.lines)
    return set(map(int, re.findall(r"zygote (\d+) forked", lines)))


def wait_until_leaving(server: Server, pids: list[int]) -> None:
    for pid in pids:
        server.wait_for_log(rf"worker {pid} retires")


def reload(server: Server) -> list[int]:
    """Reload; return the old workers, which have all begun to leave."""
    old, seen = server.workers(), len(server.log.lines)
    old = [pid for pid in old if any(f"worker {pid} is ready" in line for line in server.log.lines)]
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded", after=seen)
    wait_until_leaving(server, old)
    return old


def expect_last_answer(client: RawClient, pids: list[int]) -> None:
    """The next request is answered by one of ``pids``, with the announcement that it is the last."""
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody")
    response = client.read_response("POST")
    assert response.status == 200
    assert response.closes
    assert int(response.one("X-Pid") or 0) in pids
    client.expect_close()


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(is_alive, pids)), "the old workers leave early")


# ---- each way to leave -------------------------------------------------------------------------------------


def test_reload(begin: Start, connect: Connect, preload: tuple[str, ...]) -> None:
    server = begin("-w", "2", *PATIENT, *preload)
    kept = [connect(server) for _ in range(6)]
    old = reload(server)
    assert len(old) == 2
    wait_until(lambda: connect(server, "").get("/").one("X-Pid") not in map(str, old), "the successors serve")
    for client in kept:
        expect_last_answer(client, old)
    wait_until_gone(old)


def test_fewer_workers(begin: Start, connect: Connect) -> None:
    server = begin("-w", "2", *PATIENT)
    both = server.workers()
    kept = [connect(server) for _ in range(8)]
    server.send_signal(signal.SIGTTOU)
    leaving = [int(server.wait_for_log(r"worker (\d+) retires")[1])]
    assert set(leaving) < set(both)
    answers = [client.get("/") for client in kept]
    assert all(answer.closes == (int(answer.one("X-Pid") or 0) in leaving) for answer in answers)
    wait_until_gone(leaving)


def test_no_workers(begin: Start, connect: Connect) -> None:
    server = begin(*PATIENT)
    kept = connect(server)
    old = server.workers()
    server.send_signal(signal.SIGWINCH)
    wait_until_leaving(server, old)
    expect_last_answer(kept, old)
    wait_until_gone(old)


def test_no_workers_and_plain_connections(start: Start) -> None:
    """After WINCH nobody is left whom they could be handed to: they cannot be moved, either."""
    server = start("apps:app", *PATIENT)
    server.wait_for_log("ready: ")
    with RawClient(server.address) as kept:
        kept.get("/")
        old = server.workers()
        server.send_signal(signal.SIGWINCH)
        wait_until_leaving(server, old)
        expect_last_answer(kept, old)
        wait_until_gone(old)


@pytest.mark.parametrize("way", ["--max-requests", "--max-worker-lifetime", "TERM"])
def test_one_worker_is_replaced(begin: Start, connect: Connect, way: str) -> None:
    given = {"--max-requests": "3", "--max-worker-lifetime": "1"}
    server = begin(*PATIENT, *((way, given[way]) if way in given else ()))
    kept = connect(server, "")
    (old,) = (int(kept.get("/").one("X-Pid") or 0),)
    if way == "TERM":
        os.kill(old, signal.SIGTERM)
    elif way == "--max-requests":
        for _ in range(2):
            assert kept.get("/").status == 200
    wait_until_leaving(server, [old])
    expect_last_answer(kept, [old])
    wait_until_gone([old])


def test_upgrade(begin: Start, connect: Connect, tmp_path: Path) -> None:
    pidfile = tmp_path / "server.pid"
    server = begin(*PATIENT, "-p", str(pidfile), bind="tcp")
    kept = connect(server)
    old, seen = server.workers(), len(server.log.lines)
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log("stopping gracefully", after=seen)
    new = int(pidfile.read_text())
    try:
        assert new != server.pid
        wait_until_leaving(server, old)
        expect_last_answer(kept, old)
        assert server.process.wait(DEADLINE_S) == 0
        assert connect(server, "").get("/").status == 200
    finally:
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not is_alive(new), "the new master stops")


# ---- in whatever state a connection is ---------------------------------------------------------------------


def test_a_handshake_and_part_of_a_head(begin: Start, connect: Connect, ca: trustme.CA) -> None:
    server = begin(*PATIENT, "--header-timeout", "30")
    silent, part = connect(server, ""), connect(server)
    part.send(b"POST / HTTP/1.1\r\nHost: h\r\nConte")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(ca).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    half = RawTCP(server)
    with closing(half.sock):
        half.sock.sendall(hello[:50])
        old = reload(server)
        part.sock.settimeout(1.5)
        with pytest.raises(TimeoutError):  # longer than a fresh connection was given before
            part.sock.recv(1)
        part.sock.settimeout(DEADLINE_S)
        part.send(b"nt-Length: 4\r\n\r\nbody")
        response = part.read_response("POST")
        assert (response.status, response.closes) == (200, True)
        part.expect_close()
        expect_last_answer(silent, old)
        half.sock.sendall(hello[50:])
        answer = half.talk(tls, incoming, outgoing, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer.lower()
    wait_until_gone(old)


class RawTCP:
    """A TCP connection whose TLS is the test's own."""

    def __init__(self, server: Server) -> None:
        self.sock = socket.create_connection(server.address, DEADLINE_S)

    def talk(self, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, data: bytes) -> bytes:
        """End the handshake, send ``data``, return all that comes."""
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(outgoing.read())
                incoming.write(self.sock.recv(65536))
        tls.write(data)
        self.sock.sendall(outgoing.read())
        answer = b""
        while piece := self.sock.recv(65536):
            incoming.write(piece)
            try:
                while more := tls.read(65536):
                    answer += more
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                pass
        return answer


def test_half_a_record_of_the_next_request(begin: Start, ca: trustme.CA) -> None:
    """TCP cuts where it likes; here in the middle of a TLS record."""
    server = begin(*PATIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(ca).wrap_bio(incoming, outgoing, server_hostname="localhost")
    raw = RawTCP(server)
    with closing(raw.sock):
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sock.sendall(outgoing.read())
                incoming.write(raw.sock.recv(65536))
        tls.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        raw.sock.sendall(outgoing.read())
        answer = b""
        while not answer.endswith(b"hello\n"):
            incoming.write(raw.sock.recv(65536))
            try:
                while True:
                    answer += tls.read(65536)
            except ssl.SSLWantReadError:
                pass
        tls.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody")
        record = outgoing.read()
        raw.sock.sendall(record[:20])
        old = reload(server)
        raw.sock.sendall(record[20:])
        answer = raw.talk(tls, incoming, outgoing, b"")
    assert answer.startswith(b"HTTP/1.1 200 ")
    wait_until_gone(old)


GATED = """
import os, time

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    yield b"begun" * 100
    while os.path.exists("gate"):
        time.sleep(0.01)
    yield b"ended"
"""


def test_a_response_that_had_promised_to_keep_the_connection(begin: Start, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    server = begin(*PATIENT, "-w", "2", app="gated:app", files={"gated.py": GATED})
    client = connect(server, "")
    client.request("/")
    head = client.sock.recv(1)  # the first block is on its way, and with it the promise
    assert head == b"H"
    client._buffer = head
    old = server.workers()
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded")
    (tmp_path / "gate").unlink()
    response = client.read_response()
    assert response.body.endswith(b"ended")
    wait_until_leaving(server, old)
    if not response.closes:
        client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody")
        response = client.read_response("POST")
        assert (response.status, response.closes) == (200, True)
        assert int(response.one("X-Pid") or 0) in old
    client.expect_close()
    wait_until_gone(old)


def test_behind_the_proxy_protocol(begin: Start, ca: trustme.CA) -> None:
    server = begin(*PATIENT, "--proxy-protocol", "v1", "--header-timeout", "30")
    with ExitStack() as stack:

        def proxied() -> TLSClient:
            class Proxied(TLSClient):
                def __init__(self) -> None:
                    self.sock = socket.create_connection(server.address, DEADLINE_S)
                    self.sock.sendall(V1)
                    self.sock = client_context(ca).wrap_socket(self.sock, server_hostname="localhost")
                    self.deadline_s = DEADLINE_S
                    self._buffer = b""

            return stack.enter_context(Proxied())

        kept = [proxied() for _ in range(2)]
        kept[0].get("/")
        old = reload(server)
        for client in kept:
            expect_last_answer(client, old)
    wait_until_gone(old)


# ---- for how long -------------------------------------------------------------------------------------------


def test_it_ends_by_itself(begin: Start, connect: Connect) -> None:
    server = begin("--tls-linger", "1", "--log-level", "debug")
    kept = connect(server)
    begun = time.monotonic()
    old = reload(server)
    kept.expect_close()
    assert time.monotonic() - begun >= 1.0
    wait_until_gone(old)


def test_zero_is_off(begin: Start, connect: Connect) -> None:
    server = begin("--tls-linger", "0", "--log-level", "debug")
    kept = connect(server)
    old = reload(server)
    kept.expect_close()
    wait_until_gone(old)


def test_graceful_timeout_bounds_it(begin: Start, connect: Connect) -> None:
    """The worker leaves by itself: a kill would be an error in the log, which the fixture sees."""
    server = begin("--tls-linger", "40", "--graceful-timeout", "1", "--log-level", "debug", "-w", "2")
    kept = [connect(server) for _ in range(4)]
    old = reload(server)
    for client in kept:
        client.expect_close()
    wait_until_gone(old)


def test_a_stop_waits_for_no_idle_client(begin: Start, connect: Connect, preload: tuple[str, ...]) -> None:
    """Also not while workers of before linger."""
    server = begin("-w", "2", *PATIENT, *preload)
    kept = [connect(server) for _ in range(4)]
    old = reload(server)
    kept += [connect(server) for _ in range(4)]
    assert any(map(is_alive, old))
    begun = time.monotonic()
    server.send_signal(signal.SIGTERM)
    for client in kept:
        client.expect_close()
    assert server.wait() == 0
    assert time.monotonic() - begun < 8.0


def test_fast_stop(begin: Start, connect: Connect) -> None:
    server = begin(*PATIENT)
    kept = connect(server)
    old = reload(server)
    assert server.stop(signal.SIGINT) == 0
    kept.sock.settimeout(DEADLINE_S)
    assert not any(map(is_alive, old))


def test_the_masters_death_ends_it(begin: Start, connect: Connect) -> None:
    server = begin(*PATIENT, expect=("is gone",))
    kept = connect(server)
    old = reload(server)
    every = server.workers()
    os.kill(server.pid, signal.SIGKILL)
    kept.expect_close()
    wait_until_gone([*old, *every])


# ---- the supervisor -------------------------------------------------------------------------------------------


def test_a_reload_is_not_held_up(begin: Start, connect: Connect) -> None:
    """Four steps, each of whose workers lingers: the command returns when the successors serve."""
    server = begin("-w", "4", *PATIENT)
    kept = [connect(server) for _ in range(24)]
    old = server.workers()
    done = ctl(server.pid, "reload", "--wait")
    assert (done.status, done.err) == (0, "")
    wait_until_leaving(server, old)
    lingering = {int(client.get("/").one("X-Pid") or 0) for client in kept[:1]}
    assert lingering <= set(old)
    state = ctl(server.pid, "status", "--json")
    assert '"serving": 4' in state.out
    for client in kept[1:]:
        expect_last_answer(client, old)
    wait_until_gone(old)
    wait_until(lambda: '"retiring": 0' in ctl(server.pid, "status", "--json").out, "the master has reaped them")


def test_recycling_is_not_held_up(begin: Start, connect: Connect) -> None:
    """`max_unavailable` is one; each worker lingers, and all are replaced nevertheless."""
    server = begin("-w", "3", *PATIENT, "--max-worker-lifetime", "1")
    old = server.workers()
    kept = [connect(server) for _ in range(12)]
    wait_until_leaving(server, old)
    for client in kept:
        client.close()
    wait_until_gone(old)


# ---- sessions -------------------------------------------------------------------------------------------------

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Resuming:
    """A client that resumes its session at each connection."""

    def __init__(self, server: Server, context: ssl.SSLContext, name: str = "localhost") -> None:
        self.server = server
        self.context = context
        self.name = name
        self.session: ssl.SSLSession | None = None

    def wrap(self, raw: socket.socket) -> ssl.SSLSocket:
        """Offer the session of the connection before."""
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(raw, server_hostname=self.name, session=self.session)

    def ask(self, target: str = "/", keep: bool = False) -> tuple[bool, str, bytes]:
        """Return whether the session was resumed, the worker's pid, and the answer's body.

        Args:
            keep: go on offering the session of before.
        """
        raw = socket.create_connection(self.server.address, DEADLINE_S)
        with closing(raw), self.wrap(raw) as sock:
            client = TLSClient.__new__(TLSClient)
            client.sock, client.deadline_s, client._buffer = sock, DEADLINE_S, b""
            response = client.get(target, headers="Connection: close\r\n")
            reused = bool(sock.session_reused)
            if not keep:
                self.session = sock.session
        return reused, response.one("X-Pid") or "", response.body

    def workers_that_resume(self, count: int) -> set[int]:
        """Connect until ``count`` workers have answered; each must have resumed. Return their pids."""
        seen: set[int] = set()

        def ask() -> bool:
            # All at once: to one after the other, the same worker would be the quickest again and again.
            with ExitStack() as stack:
                raws = [
                    stack.enter_context(socket.create_connection(self.server.address, DEADLINE_S))
                    for _ in range(4 * count)
                ]
                for raw in raws:
                    client = TLSClient.__new__(TLSClient)
                    client.sock, client.deadline_s, client._buffer = self.wrap(raw), DEADLINE_S, b""
                    stack.enter_context(client)
                    pid = client.get("/").one("X-Pid") or ""
                    assert client.sock.session_reused, f"{pid} did not resume it; these did: {seen}"
                    seen.add(int(pid))
                self.session = client.sock.session
            return len(seen) == count

        wait_until(ask, f"{count} workers answer", 2 * DEADLINE_S)
        return seen


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
def test_sessions_resume_in_all_workers_and_over_reloads(
    begin: Start, ca: trustme.CA, version: ssl.TLSVersion, preload: tuple[str, ...]
) -> None:
    if version == VERSIONS[0] and preload:
        pytest.skip("the tickets are the same")
    server = begin("-w", "2", *PATIENT, *preload)
    context = client_context(ca)
    context.minimum_version = context.maximum_version = version
    client = Resuming(server, context)
    assert not client.ask()[0]
    first = client.workers_that_resume(2)
    for _ in range(1 + bool(preload)):
        old = reload(server)
        wait_until_gone(old)
        assert client.workers_that_resume(2).isdisjoint(first)
    # and in one that takes a killed one's place
    victim = client.workers_that_resume(2).pop()
    server.expect("SIGKILL", r"worker \d+")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not is_alive(victim), "it is dead")
    assert victim not in client.workers_that_resume(2)


def test_a_new_certificate_ends_sessions(begin: Start, ca: trustme.CA, tmp_path: Path) -> None:
    server = begin(*PATIENT)
    client = Resuming(server, client_context(ca))
    client.ask()
    assert client.ask()[0]
    issue(ca, tmp_path)
    wait_until_gone(reload(server))
    assert not client.ask()[0]
    assert client.ask()[0]
    # written again, but the same: a renewal's tool may do that each night
    for name in ("server.pem", "server.key"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes())
    wait_until_gone(reload(server))
    assert client.ask()[0]


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
def test_a_clients_certificate_in_a_resumed_session(begin: Start, ca: trustme.CA, version: ssl.TLSVersion) -> None:
    server = begin("--ca-certs", "ca.pem", "--cert-reqs", "2", *PATIENT)
    context = client_context(ca, certificate=True)
    context.minimum_version = context.maximum_version = version
    client = Resuming(server, context)
    assert not client.ask()[0]
    wait_until_gone(reload(server))
    reused, _, body = client.ask("/environ")
    assert reused
    assert b"CN=ada," in body
    assert b"BEGIN CERTIFICATE" in body


@pytest.mark.parametrize("name", ["localhost", "shop.example"])
def test_sessions_with_several_certificates(begin: Start, ca: trustme.CA, tmp_path: Path, name: str) -> None:
    ca.issue_cert("shop.example").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "shop.pem"))
    server = begin("--sni-certificate", "shop.example=shop.pem", *PATIENT, "-w", "2")
    client = Resuming(server, client_context(ca), name)
    assert not client.ask()[0]
    client.workers_that_resume(2)
    wait_until_gone(reload(server))
    client.workers_that_resume(2)


HOOK = """
import os

def ssl_context(config, default_ssl_context_factory):
    os.write(1, b"called %d\\n" % os.getpid())  # at once: print() writes pieces, which those of others come between
    return default_ssl_context_factory()
"""


def test_the_hook_is_called_in_each_worker(begin: Start, connect: Connect, preload: tuple[str, ...]) -> None:
    server = begin("-w", "2", "-c", "conf.py", *PATIENT, *preload, files={"conf.py": HOOK})
    kept = connect(server)

    def callers() -> set[int]:
        return {int(line.split()[1]) for line in server.out.lines if line.startswith("called")}

    wait_until(lambda: callers() == set(server.workers()) - zygotes(server), "each worker has called it")
    expect_last_answer(kept, reload(server))


def test_the_master_alone_reads_the_key(begin: Start, connect: Connect, tmp_path: Path) -> None:
    """So it may be root's, and a worker that is replaced has the certificate of the last reload."""
    server = begin(*PATIENT, expect=("SIGKILL", r"worker \d+"))
    (tmp_path / "server.key").unlink()
    (old,) = (int(connect(server, "").get("/").one("X-Pid") or 0),)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: not is_alive(old), "it is dead")
    assert connect(server, "").get("/").one("X-Pid") != str(old)


DAY = """
import wsgiserv.net.tls_context
wsgiserv.net.tls_context.RENEW_S = 2.0
"""


def test_ticket_keys_are_renewed_in_running_workers_at_once(
    begin: Start, ca: trustme.CA, preload: tuple[str, ...]
) -> None:
    """A day of 2 s: the old key is gone, and the new one is that of all workers, also of those that come later."""
    server = begin("-w", "2", "-c", "conf.py", *PATIENT, *preload, files={"conf.py": DAY})
    workers = server.workers()
    client = Resuming(server, client_context(ca))
    client.ask()
    assert wait_until(lambda: not client.ask(keep=True)[0], "the key is renewed")

    def all_resume(count: int) -> Callable[[], set[int]]:
        def ask() -> set[int]:
            client.ask()
            try:
                return client.workers_that_resume(count)
            except AssertionError:  # the day has just changed
                return set()

        return ask

    assert wait_until(all_resume(2), "the new key is in both") <= set(workers)
    server.send_signal(signal.SIGTTIN)
    server.wait_for_log("3 workers wanted")
    assert len(wait_until(all_resume(3), "the new worker has it, too")) == 3


# ---- real clients ---------------------------------------------------------------------------------------------


def test_posts_on_kept_connections_through_reloads(begin: Start, ca: trustme.CA, tmp_path: Path) -> None:
    """`http.client` and `requests`, which repeat no POST, with pauses of any length."""
    server = begin("-w", "2", "--log-level", "debug", "--tls-linger", "4")
    stop = threading.Event()
    done: list[str] = []
    wrong: list[str] = []
    context = client_context(ca)

    def raw(seed: int) -> None:
        chance = random.Random(seed)
        client = http.client.HTTPSConnection("localhost", server.address[1], context=context, timeout=DEADLINE_S)
        with closing(client):
            while not stop.wait(chance.choice((0.0, 0.0, chance.uniform(0.0, 1.5)))):
                try:
                    client.request("POST", "/echo", body=f"{seed}", headers={"Content-Type": "text/plain"})
                    done.append(client.getresponse().read().decode())
                except (OSError, http.client.HTTPException) as error:
                    wrong.append(repr(error))
                    client.close()

    def session(seed: int) -> None:
        chance = random.Random(seed)
        with requests.Session() as client:
            client.trust_env = False
            client.verify = str(tmp_path / "ca.pem")
            while not stop.wait(chance.choice((0.0, chance.uniform(0.0, 1.5)))):
                try:
                    url = f"https://localhost:{server.address[1]}/echo"
                    done.append(client.post(url, data=f"{seed}", timeout=DEADLINE_S).text)
                except requests.RequestException as error:
                    wrong.append(repr(error))

    threads = [threading.Thread(target=raw, args=(n,)) for n in range(6)]
    threads += [threading.Thread(target=session, args=(n,)) for n in range(6, 9)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            goal = len(done) + 20
            reload(server)
            wait_until(lambda goal=goal: len(done) > goal, "the load goes on")
        wait_until(lambda: len(set(done)) == 9, "each client has been answered")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert set(done) == {str(n) for n in range(9)}
    assert children(server.pid)
