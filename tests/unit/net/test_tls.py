"""TLS over a client's socket, byte by byte, without a server: RFC 8446, and what never waits."""

from __future__ import annotations

import logging
import os
import random
import socket
import ssl
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from contexts import serving
from tlspair import READ_BYTES, Files, Pair, TLSValues

from wsgiserv.errors import ConfigError, ProtocolError
from wsgiserv.net.client import Connection
from wsgiserv.net.request_reader import LINGERING
from wsgiserv.net.send_queue import MEMORY_BYTES, WORKER_MEMORY_BYTES, SendQueue
from wsgiserv.net.tls import TLSSocket
from wsgiserv.net.tls_context import check_certificates, make_context
from wsgiserv.scoreboard import Scoreboard
from wsgiserv.wsgi.budget import MemoryBudget
from wsgiserv.wsgi.environ import base_environ


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made: list[Pair] = []
    yield made
    for pair in made:
        pair.close()


@pytest.fixture
def pair(files: Files, pairs: list[Pair]) -> Pair:
    """Both ends, their hands shaken."""
    pairs.append(Pair.of(files))
    return pairs[-1]


@pytest.fixture
def fresh(files: Files, pairs: list[Pair]) -> Pair:
    """Both ends before the first byte."""
    pairs.append(Pair(make_context(files.settings()), files.client_context()))
    return pairs[-1]


# ---- the handshake -----------------------------------------------------------------------------------


def test_handshake_byte_by_byte(fresh: Pair) -> None:
    done = False
    while not (done and "HTTPS" in fresh.environ):
        done = done or fresh.client_step()
        for byte in fresh.outgoing.read():
            fresh.peer.send(bytes([byte]))
            assert fresh.serve() is None
            assert not fresh.wakes()
        fresh.pull()
    fresh.say(b"GET")
    assert fresh.serve() == b"GET"


def test_request_behind_the_last_byte_of_the_handshake(fresh: Pair) -> None:
    assert not fresh.client_step()
    fresh.push()
    assert fresh.serve() is None
    fresh.pull()
    assert fresh.client_step()
    fresh.client.write(b"GET / HTTP/1.1\r\n")
    fresh.push()  # the client's Finished and its request in one segment
    assert fresh.serve() == b"GET / HTTP/1.1\r\n"


def test_nothing_came_yet(fresh: Pair) -> None:
    assert fresh.serve() is None


def test_client_that_leaves_before_or_during_the_handshake(files: Files, pairs: list[Pair]) -> None:
    for cut in (0, 1, 100):
        pair = Pair(make_context(files.settings()), files.client_context())
        pairs.append(pair)
        pair.client_step()
        pair.peer.send(pair.outgoing.read()[:cut]) if cut else None
        if cut:
            assert pair.serve() is None
        pair.peer.close()
        assert pair.serve() == b""


def test_garbage_is_told_so(fresh: Pair) -> None:
    fresh.peer.send(b"\x00\x01garbage that is neither TLS nor HTTP")
    with pytest.raises(ConnectionError, match="TLS handshake failed: "):
        fresh.server.recv(READ_BYTES)


def test_broken_record_behind_a_good_one_gives_nothing(pair: Pair) -> None:
    pair.client.write(b"good")
    pair.peer.sendall(pair.outgoing.read() + b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ConnectionError, match=r"TLS connection failed: .*bad.*mac"):
        pair.server.recv(READ_BYTES)
    with pytest.raises(ConnectionError):
        pair.server.send(b"response")


@pytest.mark.filterwarnings("ignore:.*TLSv1_1:DeprecationWarning")
def test_old_versions_are_refused(files: Files, pairs: list[Pair]) -> None:
    context = files.client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    pair = Pair(make_context(files.settings()), context)
    pairs.append(pair)
    pair.client_step()
    pair.push()
    with pytest.raises(ConnectionError, match="unsupported protocol"):
        pair.server.recv(READ_BYTES)
    pair.pull()
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.protocol.version"):
        pair.client.do_handshake()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_environ(files: Files, pairs: list[Pair], version: ssl.TLSVersion) -> None:
    context = files.client_context()
    context.minimum_version = context.maximum_version = version
    pairs.append(Pair.of(files, context))
    environ = pairs[-1].environ
    cipher = pairs[-1].client.cipher()
    assert cipher is not None
    assert environ == {
        "HTTPS": "on",
        "SSL_PROTOCOL": {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name],
        "SSL_CIPHER": cipher[0],
        "SSL_CLIENT_VERIFY": "NONE",
    }


def test_alpn(files: Files, pairs: list[Pair]) -> None:
    context = files.client_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    pairs.append(Pair.of(files, context))
    assert pairs[-1].client.selected_alpn_protocol() == "http/1.1"


def test_ciphers_setting(files: Files, pairs: list[Pair]) -> None:
    context = files.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    pairs.append(Pair.of(files, context, ciphers="ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"))
    assert pairs[-1].environ["SSL_CIPHER"].endswith("AES256-GCM-SHA384")


def test_client_that_makes_tls_owe_it_but_reads_nothing_must_go(files: Files, pairs: list[Pair]) -> None:
    """What TLS itself has to answer is bounded, like all that is kept for a client."""
    pair = Pair(make_context(files.settings()), files.client_context(), buffer_bytes=8192)
    pairs.append(pair)
    pair.shake()
    assert pair.server.send(bytes(1_000_000)) < 1_000_000  # the socket takes no more
    pair.server._outgoing.write(bytes(70_000))  # as if it had asked for so many new keys
    pair.say(b"more")
    with pytest.raises(ConnectionError, match="reads nothing"):
        pair.server.recv(READ_BYTES)


# ---- reading ---------------------------------------------------------------------------------------------


def test_nothing_stays_inside_openssl(pair: Pair) -> None:
    """A poller does not see what has been deciphered: one read returns all the records that are here."""
    data = os.urandom(40_000)
    pair.say(data)
    assert pair.serve() == data
    assert not pair.wakes()
    assert pair.serve() is None


def test_more_than_one_read_takes_wakes_again(pair: Pair) -> None:
    data = os.urandom(100_000)
    pair.say(data)
    got = b""
    while pair.wakes():
        piece = pair.serve()
        assert piece is None or len(piece) <= READ_BYTES
        got += piece or b""
    assert got == data


def test_record_in_pieces(pair: Pair) -> None:
    pair.client.write(b"x" * 5000)
    wire = pair.outgoing.read()
    for byte in wire[:-1]:
        pair.peer.send(bytes([byte]))
        assert pair.serve() is None
    pair.peer.send(wire[-1:])
    assert pair.serve() == b"x" * 5000


def test_peek_sees_that_something_is_here(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        pair.server.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    pair.say(b"hello")
    assert pair.server.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    assert pair.serve() == b"hello"


def test_ragged_end_is_an_end(pair: Pair) -> None:
    pair.say(b"hello")
    pair.peer.close()
    assert pair.serve() == b"hello"
    assert pair.serve() == b""
    assert pair.serve() == b""


def test_close_notify_is_an_end(pair: Pair) -> None:
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.push()
    assert pair.serve() == b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_half_closed_client_gets_its_response(files: Files, pairs: list[Pair], version: ssl.TLSVersion) -> None:
    context = files.client_context()
    context.maximum_version = version
    pair = Pair.of(files, context)
    pairs.append(pair)
    pair.client.write(b"request")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.push()  # the request and the end in one segment
    assert pair.serve() == b"request"
    assert pair.wakes()  # else nobody would ask for the end
    assert pair.serve() == b""
    assert pair.server.send(b"response") == 8
    pair.server.close()
    assert pair.hear() == b"response"


# ---- writing ---------------------------------------------------------------------------------------------


def test_small_response_goes_out_at_once(pair: Pair) -> None:
    assert pair.server.sendmsg((b"head", b"body"), (), socket.MSG_DONTWAIT) == 8
    wire = pair.pull()
    assert wire.count(b"\x17\x03\x03") == 1  # one record
    assert pair.hear() == b"headbody"


def test_slow_reader_and_a_large_response(files: Files, pairs: list[Pair]) -> None:
    """After a would-block the same bytes are given again, cut elsewhere: none is lost, none comes twice."""
    pair = Pair(make_context(files.settings()), files.client_context(), buffer_bytes=8192)
    pairs.append(pair)
    pair.shake()
    chance = random.Random(20)
    data = memoryview(chance.randbytes(2_000_000))
    sent, got, blocked = 0, bytearray(), 0
    while sent < len(data):
        piece = data[sent : sent + chance.choice((1, 10, 1000, 20_000, 70_000, 300_000))]
        try:
            if chance.random() < 0.5:
                sent += pair.server.sendmsg((bytes(piece[:5]), piece[5:]), (), socket.MSG_DONTWAIT)
            else:
                sent += pair.server.send(piece, socket.MSG_DONTWAIT)
        except BlockingIOError:
            blocked += 1
            pair.pull(chance.randrange(1, 6000))
            got += pair.hear() if chance.random() < 0.5 else b""
        assert sent >= len(got) - 70_000
    while piece_heard := pair.hear():
        got += piece_heard
    assert blocked > 10
    assert bytes(got) == bytes(data)


def test_what_is_reported_as_sent_is_with_the_kernel(files: Files, pairs: list[Pair]) -> None:
    """The connection waits for its next request then, and nobody would send a rest."""
    pair = Pair(make_context(files.settings()), files.client_context(), buffer_bytes=8192)
    pairs.append(pair)
    pair.shake()
    data = os.urandom(60_000)
    sent, got = 0, b""
    while sent < len(data):
        try:
            sent += pair.server.send(data[sent:])
        except BlockingIOError:
            got += pair.hear()
    while piece := pair.hear():  # without another call of the server's
        got += piece
    assert got == data


def test_outbox_over_tls(files: Files, pairs: list[Pair], tmp_path: Path) -> None:
    """Memory, spool file and a file's range, in order, for a client that reads slowly."""
    pair = Pair(make_context(files.settings()), files.client_context(), buffer_bytes=8192)
    pairs.append(pair)
    pair.shake()
    outbox = SendQueue(str(tmp_path), MemoryBudget(WORKER_MEMORY_BYTES))
    first, second, third = os.urandom(MEMORY_BYTES - 10), os.urandom(300_000), os.urandom(500_000)
    outbox.add(first)
    outbox.add(second)  # beyond what stays in memory
    with tempfile.TemporaryFile() as file:
        file.write(b"before" + third + b"behind")
        file.flush()
        outbox.add_file(file.fileno(), 6, len(third))
    outbox.add(b"the end")
    got = bytearray()
    while outbox:
        outbox.flush(pair.server)
        pair.pull(50_000)
        got += pair.hear()
    while piece := pair.hear():
        got += piece
    assert bytes(got) == first + second + third + b"the end"


def test_outbox_notices_a_file_that_became_shorter(pair: Pair) -> None:
    outbox = SendQueue(None, MemoryBudget(WORKER_MEMORY_BYTES))
    with tempfile.TemporaryFile() as file:
        file.write(b"short")
        file.flush()
        outbox.add_file(file.fileno(), 0, 10)
        with pytest.raises(OSError, match="shorter"):
            outbox.flush(pair.server)
    outbox.clear()


def test_slow_reader_is_seen_to_take_something(files: Files, pairs: list[Pair]) -> None:
    """Else `send_timeout` would hit a client that reads less than a whole piece within it."""
    pair = Pair(make_context(files.settings()), files.client_context(), buffer_bytes=8192)
    pairs.append(pair)
    pair.shake()
    data = memoryview(os.urandom(65_536))
    sent = pair.server.send(data)
    assert 0 < sent < 40_000
    while sent < len(data):
        assert pair.pull(1_000_000)
        before, sent = sent, sent + pair.server.send(data[sent:])
        assert sent > before
    assert pair.hear() == data


# ---- the end -----------------------------------------------------------------------------------------------


def test_close_says_goodbye(pair: Pair) -> None:
    pair.server.send(b"response")
    pair.server.close()
    assert pair.says_goodbye()
    assert pair.server.fileno() == -1
    pair.server.close()


def test_reset_says_no_goodbye(pair: Pair) -> None:
    """The client must not take what it has for the whole."""
    pair.server.send(b"half a resp")
    pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.server.close()
    assert not pair.says_goodbye()


def test_no_goodbye_behind_a_response_that_was_cut_off(files: Files, pairs: list[Pair]) -> None:
    pair = Pair(make_context(files.settings()), files.client_context(), buffer_bytes=8192)
    pairs.append(pair)
    pair.shake()
    assert pair.server.send(bytes(1_000_000)) < 1_000_000  # the rest waits for the client
    pair.server.close()
    assert not pair.says_goodbye()


def test_lingering(pair: Pair) -> None:
    """After our end, what the client still sends is taken and discarded until its own end."""
    pair.server.shutdown(socket.SHUT_WR)
    pair.say(b"more of a body that nobody wants")
    assert pair.serve()
    assert pair.serve() is None
    pair.peer.shutdown(socket.SHUT_WR)
    assert pair.serve() == b""
    with pytest.raises(OSError, match="not open"):
        pair.server.send(b"late")


def test_goodbye_comes_with_the_half_close(pair: Pair) -> None:
    pair.server.shutdown(socket.SHUT_WR)
    assert pair.says_goodbye()


def test_close_before_the_handshake(fresh: Pair) -> None:
    fresh.server.close()
    assert fresh.peer.recv(10) == b""


def test_no_response_before_the_handshake(fresh: Pair) -> None:
    with pytest.raises(ConnectionError):
        fresh.server.send(b"HTTP/1.1 200 OK\r\n\r\n")
    with pytest.raises(BlockingIOError):
        fresh.peer.recv(10)


# ---- plain HTTP on a TLS port ----------------------------------------------------------------------------


class Loop:
    """Lets the connection have its way."""

    def watch(self, connection: Connection, interest: int) -> None:
        connection.interest = interest

    def ignore(self, connection: Connection) -> None:
        connection.interest = -1

    def resume(self, connection: Connection) -> None: ...

    def forget(self, connection: Connection) -> None: ...

    def wait_writable(self, connection: Connection) -> bool:
        return False


def connection_over(pair: Pair, app: Callable[..., Any]) -> Connection:
    log = logging.getLogger("test.tls")
    context = serving(app, log=log, slot=Scoreboard(1, 1).slots[0])
    base = base_environ(
        server_name="s", server_port="443", url_scheme="https", errors=None, multithread=False, multiprocess=False
    )
    return Connection(context, Loop(), pair.server, base, pair.environ, b"192.0.2.1", False)


def never(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    raise AssertionError("plain HTTP reached the application")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"P", b"\r\nGET /", b"x"])
def test_plain_http_gets_a_readable_400(fresh: Pair, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    connection = connection_over(fresh, never)
    fresh.peer.send(data)
    assert not connection.receive()
    answer = fresh.peer.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nConnection: close\r\n" in answer
    assert b"https://" in answer.partition(b"\r\n\r\n")[2]
    assert fresh.peer.recv(10) == b""
    assert connection.state == LINGERING  # a body on its way does not turn the answer into a reset
    fresh.peer.send(b"more")
    connection.receive()
    fresh.peer.close()
    connection.receive()
    assert fresh.server.fileno() == -1
    assert len(caplog.records) == 1


def test_plain_http_is_a_protocol_error(fresh: Pair) -> None:
    fresh.peer.send(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ProtocolError) as caught:
        fresh.server.recv(READ_BYTES)
    assert caught.value.status == 400


def test_connection_over_tls(pair: Pair) -> None:
    """One state machine serves both: two pipelined requests, their environ, a response with a goodbye."""
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ)
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hello"]

    connection = connection_over(pair, app)
    pair.say(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert connection.receive()
    connection.run()
    assert connection.advance()
    connection.run()
    assert pair.hear().count(b"hello") == 2
    assert [environ["PATH_INFO"] for environ in seen] == ["/1", "/2"]
    assert seen[0]["wsgi.url_scheme"] == "https"
    assert seen[0]["HTTPS"] == "on"
    assert seen[0]["SSL_PROTOCOL"] == "TLSv1.3"
    assert pair.says_goodbye()


# ---- clients' certificates -------------------------------------------------------------------------------


def with_client_certificate(files: Files, ca: trustme.CA | None = None) -> ssl.SSLContext:
    context = files.client_context()
    (ca or files.ca).issue_cert("ada@example.org", common_name="ada, countess").configure_cert(context)
    return context


@pytest.mark.parametrize("cert_reqs", [1, 2])
def test_client_certificate_in_the_environ(files: Files, pairs: list[Pair], cert_reqs: int) -> None:
    context = with_client_certificate(files)
    pairs.append(Pair.of(files, context, cert_reqs=cert_reqs, ca_certs=files.path("ca.pem")))
    environ = pairs[-1].environ
    assert environ["SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert environ["SSL_CLIENT_S_DN"].startswith("CN=ada\\, countess,")
    assert ",O=trustme " in environ["SSL_CLIENT_S_DN"]
    assert "O=trustme " in environ["SSL_CLIENT_I_DN"]
    assert int(environ["SSL_CLIENT_M_SERIAL"], 16) > 0
    assert ssl.cert_time_to_seconds(environ["SSL_CLIENT_V_START"]) < ssl.cert_time_to_seconds(
        environ["SSL_CLIENT_V_END"]
    )
    assert environ["SSL_CLIENT_CERT"].startswith("-----BEGIN CERTIFICATE-----\n")
    assert all(isinstance(value, str) for value in environ.values())


def test_optional_client_certificate_may_lack(files: Files, pairs: list[Pair]) -> None:
    pairs.append(Pair.of(files, cert_reqs=1, ca_certs=files.path("ca.pem")))
    assert pairs[-1].environ["SSL_CLIENT_VERIFY"] == "NONE"
    assert "SSL_CLIENT_S_DN" not in pairs[-1].environ


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("what", ["none", "foreign"])
def test_required_client_certificate(files: Files, pairs: list[Pair], what: str, version: ssl.TLSVersion) -> None:
    context = files.client_context() if what == "none" else with_client_certificate(files, trustme.CA())
    context.maximum_version = version
    server_context = make_context(files.settings(cert_reqs=2, ca_certs=files.path("ca.pem")))
    pair = Pair(server_context, context)
    pairs.append(pair)
    pair.client_step()
    pair.push()
    assert pair.serve() is None
    pair.pull()
    pair.client_step()
    if version == ssl.TLSVersion.TLSv1_3:
        pair.client.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")  # sent before the client can know
    pair.push()
    expected = "did not return a certificate" if what == "none" else "the client's certificate is refused: "
    with pytest.raises(ConnectionError, match=f"TLS handshake failed: .*{expected}"):
        pair.server.recv(READ_BYTES)
    pair.pull()
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        pair.client.read(10)


# ---- the settings -----------------------------------------------------------------------------------------


def test_key_in_the_certificate_file(files: Files, pairs: list[Pair]) -> None:
    pairs.append(Pair.of(files, certfile=files.path("server-both.pem"), keyfile=None))
    assert pairs[-1].environ["HTTPS"] == "on"


def refused(settings: TLSValues) -> str:
    with pytest.raises(ConfigError) as caught:
        check_certificates(settings)
    return str(caught.value)


def test_files_that_lack(files: Files) -> None:
    for name in ("certfile", "keyfile", "ca_certs"):
        message = refused(files.settings(**{name: "/nowhere/x.pem"}))
        assert message.startswith(f"{name} = '/nowhere/x.pem': ")
        assert "No such file" in message


def test_files_that_are_something_else(files: Files) -> None:
    other = files.path("other.txt")
    Path(other).write_bytes(b"\xff\xfe no certificate\n")
    for name, what in (("certfile", "certificate"), ("keyfile", "private key"), ("ca_certs", "certificate")):
        message = refused(files.settings(**{name: other}))
        assert message.startswith(f"{name} = {other!r}: there is no {what} in it. Expected PEM")


def test_key_that_lacks_in_the_certificate_file(files: Files) -> None:
    message = refused(files.settings(keyfile=None))
    assert "there is no private key in it" in message
    assert "--keyfile" in message


def test_key_of_another_certificate(files: Files) -> None:
    files.issue("other", "example.org")
    message = refused(files.settings(keyfile=files.path("other.key")))
    assert message.startswith(f"keyfile = {files.path('other.key')!r}: ")
    assert "does not belong" in message
    assert files.path("server.pem") in message


def test_broken_pem(files: Files) -> None:
    broken = files.path("broken.pem")
    Path(broken).write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert broken in refused(files.settings(certfile=broken))
    assert broken in refused(files.settings(ca_certs=broken))


def test_key_with_a_passphrase_is_not_asked_for_on_the_terminal(files: Files) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(files.path("server.key")).read_bytes(), None)
    locked = files.path("locked.key")
    Path(locked).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    message = refused(files.settings(keyfile=locked))
    assert message.startswith(f"keyfile = {locked!r}: the private key has a passphrase")


def test_ciphers_that_are_none(files: Files) -> None:
    assert refused(files.settings(ciphers="NONSENSE")).startswith("ciphers = 'NONSENSE': ")


def test_client_certificates_need_an_authority(files: Files) -> None:
    message = refused(files.settings(cert_reqs=2))
    assert message.startswith("cert_reqs = 2: ")
    assert "--ca-certs" in message


# ---- the hook ----------------------------------------------------------------------------------------------


def test_hook_adjusts_the_default(files: Files, pairs: list[Pair]) -> None:
    def hook(config: Any, default_ssl_context_factory: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        assert config.certfile == files.path("server.pem")
        context = default_ssl_context_factory()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

    pairs.append(Pair.of(files, ssl_context=hook))
    assert pairs[-1].environ["SSL_PROTOCOL"] == "TLSv1.2"


def test_hook_serves_several_names(files: Files, pairs: list[Pair]) -> None:
    files.issue("shop", "shop.example")
    shop = make_context(files.settings(certfile=files.path("shop.pem"), keyfile=files.path("shop.key")))

    def choose(client: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if name == "shop.example":
            client.context = shop

    def hook(config: Any, default_ssl_context_factory: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        context = default_ssl_context_factory()
        context.sni_callback = choose  # type: ignore[assignment]
        return context

    context = make_context(files.settings(ssl_context=hook))
    for name in ("localhost", "shop.example"):
        pair = Pair(context, files.client_context(), name=name)
        pairs.append(pair)
        pair.shake()  # the client checks the name
        pair.say(b"hello")
        assert pair.serve() == b"hello"


def test_each_name_gets_its_certificate_and_all_others_the_default(files: Files, pairs: list[Pair]) -> None:
    files.issue("shop", "shop.example")
    files.issue("wild", "*.shop.example")
    context = make_context(
        files.settings(
            sni_certificates={
                "shop.example": (files.path("shop.pem"), files.path("shop.key")),
                "*.shop.example": (files.path("wild-both.pem"), None),
            }
        )
    )
    for name, served in (
        ("shop.example", "shop.example"),
        ("SHOP.Example", "shop.example"),
        ("a.shop.example", "*.shop.example"),
        ("localhost", "localhost"),
    ):
        pair = Pair(context, files.client_context(), name=name)
        pairs.append(pair)
        pair.shake()  # the client checks the name
        pair.say(b"hello")
        assert pair.serve() == b"hello"
        names = [value for _, value in pair.client.getpeercert()["subjectAltName"]]
        assert served in names
    with pytest.raises(ConfigError, match=r"sni_certificates\['b.example'\] = '/none'"):
        make_context(files.settings(sni_certificates={"b.example": ("/none", None)}))


def test_hook_that_fails(files: Files) -> None:
    def raises(config: Any, default_ssl_context_factory: Any) -> Any:
        raise RuntimeError("no vault")

    with pytest.raises(ConfigError, match="the hook ssl_context raised RuntimeError: no vault"):
        make_context(files.settings(ssl_context=raises))
    with pytest.raises(ConfigError, match="the hook ssl_context returned None"):
        make_context(files.settings(ssl_context=lambda config, default: None))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ConfigError, match=r"the hook ssl_context returned .*for a server"):
        make_context(files.settings(ssl_context=lambda config, default: client))
    with pytest.raises(ConfigError, match=r"certfile = '/nowhere'"):
        make_context(files.settings(certfile="/nowhere", ssl_context=lambda config, default: default()))


def test_hook_is_for_the_worker(files: Files) -> None:
    """It may load from elsewhere, so the master cannot judge the files."""
    check_certificates(files.settings(certfile="/nowhere", ssl_context=lambda config, default: default()))


def test_socket_has_no_dictionary(pair: Pair) -> None:
    assert not hasattr(pair.server, "__dict__")
    assert isinstance(pair.server, TLSSocket)
