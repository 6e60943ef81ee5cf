"""HTTPS by real processes and real clients, in every worker class (issue 3, rule 14)."""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import signal
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
import trustme
from programs import curl
from rawclient import RawClient
from server import Server, Start, run, wait_until

CERTIFICATE = ("--certfile", "server.pem", "--keyfile", "server.key")


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def issue(ca: trustme.CA, directory: Path) -> bytes:
    """Write server.pem, server.key and ca.pem; return the new certificate in DER."""
    cert = ca.issue_cert("localhost", "127.0.0.1")
    (directory / "server.pem").write_bytes(b"".join(pem.bytes() for pem in cert.cert_chain_pems))
    cert.private_key_pem.write_to_path(str(directory / "server.key"))
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    return ssl.PEM_cert_to_DER_cert(cert.cert_chain_pems[0].bytes().decode())


def client_context(ca: trustme.CA, *, certificate: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    if certificate:
        ca.issue_cert("ada@example.org", common_name="ada").configure_cert(context)
    return context


class TLSClient(RawClient):
    """The same over TLS, verified."""

    def __init__(self, server: Server, context: ssl.SSLContext, name: str = "localhost") -> None:
        super().__init__(server.address)
        try:
            self.sock = context.wrap_socket(self.sock, server_hostname=name)
        except BaseException:
            self.close()
            raise

    @property
    def certificate(self) -> bytes:
        """The server's, in DER."""
        assert isinstance(self.sock, ssl.SSLSocket)
        return self.sock.getpeercert(binary_form=True) or b""


Connect = Callable[[Server], TLSClient]


@pytest.fixture
def connect(ca: trustme.CA) -> Iterator[Connect]:
    """Connect to a server; closed at the end."""
    context = client_context(ca)
    with ExitStack() as stack:
        yield lambda server: stack.enter_context(TLSClient(server, context))


@pytest.fixture(scope="module")
def certificates(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the shared server's files."""
    directory = tmp_path_factory.mktemp("certificates")
    issue(ca, directory)
    return directory


@pytest.fixture
def https_refusing(shared_servers: Start, certificates: Path) -> Iterator[Server]:
    """The shared server that speaks TLS, for a test that makes it refuse a request."""
    files = ("--certfile", str(certificates / "server.pem"), "--keyfile", str(certificates / "server.key"))
    found = shared_servers("apps:app", *files, "--log-level", "debug", expect=("refused with 400",))
    before = len(found.log.lines)
    yield found
    found.check(before)


@pytest.fixture
def https(https_refusing: Server) -> Iterator[Server]:
    """The shared server that speaks TLS: nothing is refused."""
    before = len(https_refusing.log.lines)
    yield https_refusing
    assert not [line for line in https_refusing.log.lines[before:] if "refused with" in line]


def test_requests_over_keep_alive(https: Server, certificates: Path) -> None:
    url = f"https://localhost:{https.address[1]}"
    with requests.Session() as session:
        session.trust_env = False  # REQUESTS_CA_BUNDLE would win over `verify`
        session.verify = str(certificates / "ca.pem")
        environ = session.get(f"{url}/environ").json()["environ"]
        body = os.urandom(3_000_000)
        assert session.post(f"{url}/echo", data=body).content == body
        assert session.get(f"{url}/big?5000000").content == b"x" * 5_000_000
        assert session.get(f"{url}/environ").json()["environ"]["REMOTE_PORT"] == environ["REMOTE_PORT"]
    assert environ["wsgi.url_scheme"] == "https"
    assert environ["HTTPS"] == "on"
    assert environ["SSL_PROTOCOL"] == "TLSv1.3"
    assert environ["SSL_CIPHER"].startswith("TLS_")
    assert environ["SSL_CLIENT_VERIFY"] == "NONE"


def test_curl(https: Server, certificates: Path) -> None:
    url = f"https://localhost:{https.address[1]}/"
    assert curl("--cacert", "ca.pem", "--http1.1", url, cwd=certificates) == "hello\n"
    assert curl("--cacert", "ca.pem", "--tls-max", "1.2", url, cwd=certificates) == "hello\n"


def test_startup_line_says_https(start: Start, ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    server = start("apps:app", *CERTIFICATE, bind="tcp")
    server.wait_for_log(r"listening on https://127\.0\.0\.1:\d+")
    server.wait_for_log("ready")


def test_pipelined_requests_and_the_goodbye(https: Server, connect: Connect) -> None:
    client = connect(https)
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 3)
    for _ in range(3):
        assert client.read_response().body == b"hello\n"
    client.request("/", headers="Connection: close\r\n")
    assert client.read_response().body == b"hello\n"
    client.expect_close()  # with close_notify: a ragged end would raise SSLEOFError


def test_request_byte_by_byte(https: Server, connect: Connect) -> None:
    client = connect(https)
    client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", step=1)
    assert client.read_response().body == b"hello"


def test_slow_reader_of_a_large_response_holds_nobody(https: Server, connect: Connect) -> None:
    slow = connect(https)
    slow.request("/big?30000000")
    quick = connect(https)
    assert quick.get("/").body == b"hello\n"  # while the other's response waits for its reader
    assert len(slow.read_response().body) == 30_000_000


def test_stream(https: Server, connect: Connect) -> None:
    response = connect(https).get("/stream?200,50000")
    assert response.framing == "chunked"
    assert (
        hashlib.sha256(response.body).digest()
        == hashlib.sha256(b"".join(b"%d" % (number % 10) * 50_000 for number in range(200))).digest()
    )


def test_file_wrapper_with_offset_and_length(https: Server, connect: Connect, tmp_path: Path) -> None:
    data = os.urandom(10_000_000)
    (tmp_path / "data").write_bytes(data)
    client = connect(https)
    assert client.get(f"/file?{tmp_path}/data,8192").body == data
    assert client.get(f"/file?{tmp_path}/data,8192,1234567").body == data[1234567:]
    assert client.get(f"/file?{tmp_path}/data,8192,1000,5000000").body == data[1000:5_001_000]
    assert client.get("/").body == b"hello\n"


def test_refusal_of_a_broken_request(https_refusing: Server, connect: Connect) -> None:
    before = len(https_refusing.log.lines)
    client = connect(https_refusing)
    client.send(b"GET / HTTP/1.1\r\nBroken\r\n\r\n" + b"x" * 100_000)
    assert client.read_response().status == 400
    client.expect_close()
    https_refusing.wait_for_log("refused with 400", after=before)


def test_plain_http_gets_a_readable_400(https_refusing: Server, connect: Connect) -> None:
    before = len(https_refusing.log.lines)
    for _ in range(3):
        with RawClient(https_refusing.address) as plain:
            plain.offer(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
            response = plain.read_response()
            assert response.status == 400
            assert response.closes
            assert "https://" in response.text
    assert connect(https_refusing).get("/").body == b"hello\n"
    client = connect(https_refusing)
    client.send(b"\x16\x03\x01 inside of TLS\r\n\r\n")
    assert client.read_response().status == 400
    https_refusing.wait_for_log("refused with 400: (?!plain HTTP|HTTPS)", after=before)
    # A health check of the wrong scheme comes every second: one line in ten seconds.
    assert https_refusing.log.text.count("refused with 400: plain HTTP") == 1


def test_failed_handshake_is_one_line(https: Server, connect: Connect) -> None:
    before = len(https.log.lines)
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it trusts nobody
    with pytest.raises(ssl.SSLCertVerificationError):
        TLSClient(https, stranger)
    https.wait_for_log(r"\[DEBUG\] 127\.0\.0\.1: connection lost \(TLS handshake failed: .*unknown ca\)", after=before)
    assert connect(https).get("/").body == b"hello\n"


def test_silent_handshakes_hold_nobody_and_end(start: Start, ca: trustme.CA, tmp_path: Path, connect: Connect) -> None:
    """`header_timeout` bounds the handshake, and the loop waits for none."""
    issue(ca, tmp_path)
    server = start("apps:app", *CERTIFICATE, "--header-timeout", "1")
    hello = ssl.MemoryBIO()
    half = client_context(ca).wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        half.do_handshake()
    beginning = hello.read()
    with ExitStack() as stack:
        silent = [stack.enter_context(RawClient(server.address)) for _ in range(30)]
        for number, client in enumerate(silent):
            client.send(beginning[: number * 20])  # from nothing to all of a ClientHello
        assert connect(server).get("/").body == b"hello\n"
        for client in silent:
            while client.sock.recv(65536):
                pass  # the server's flight, where the ClientHello was whole


def test_client_that_half_closes(https: Server, ca: trustme.CA) -> None:
    """A request and close_notify in one go, as ``openssl s_client`` does at the end of its input."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(ca).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(https.address, 10) as sock:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        tls.write(b"GET /big?100000 HTTP/1.1\r\nHost: h\r\n\r\n")
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
        sock.sendall(outgoing.read())
        answer = b""
        while data := sock.recv(65536):  # ends well before `keepalive` does
            incoming.write(data)
            try:
                while piece := tls.read(65536):
                    answer += piece
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                pass
    assert answer.endswith(b"x" * 100_000)


def test_client_certificates(start: Start, ca: trustme.CA, tmp_path: Path, connect: Connect) -> None:
    issue(ca, tmp_path)
    server = start("apps:app", *CERTIFICATE, "--ca-certs", "ca.pem", "--cert-reqs", "2", "--log-level", "debug")
    with TLSClient(server, client_context(ca, certificate=True)) as client:
        environ = client.get("/environ").json()["environ"]
    assert environ["SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert environ["SSL_CLIENT_S_DN"].startswith("CN=ada,")
    assert "BEGIN CERTIFICATE" in environ["SSL_CLIENT_CERT"]
    without = connect(server)
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
        without.get("/")
    server.wait_for_log("TLS handshake failed: peer did not return a certificate")


def test_several_names_through_the_hook(start: Start, ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    shop = ca.issue_cert("shop.example")
    shop.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "shop.pem"))
    configuration = """
import ssl

def ssl_context(config, default_ssl_context_factory):
    context, shop = default_ssl_context_factory(), default_ssl_context_factory()
    shop.load_cert_chain("shop.pem")

    def choose(client, name, _):
        if name == "shop.example":
            client.context = shop

    context.sni_callback = choose
    return context
"""
    server = start("apps:app", *CERTIFICATE, "-c", "conf.py", files={"conf.py": configuration})
    for name in ("localhost", "shop.example"):
        with TLSClient(server, client_context(ca), name) as client:
            assert client.get("/").status == 200


def test_several_names_through_the_setting(start: Start, ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    shop = ca.issue_cert("shop.example")
    shop.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "shop.pem"))
    server = start("apps:app", *CERTIFICATE, "--sni-certificate", "shop.example=shop.pem")
    for name in ("localhost", "shop.example"):
        with TLSClient(server, client_context(ca), name) as client:
            assert client.get("/").status == 200


def test_reload_reads_the_certificate_again(start: Start, ca: trustme.CA, tmp_path: Path, connect: Connect) -> None:
    first = issue(ca, tmp_path)
    server = start("apps:app", *CERTIFICATE)
    assert connect(server).certificate == first
    second = issue(ca, tmp_path)
    server.wait_for_log("ready")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded")
    wait_until(lambda: connect(server).certificate == second, "the new certificate")


def test_reload_with_a_broken_certificate_changes_nothing(
    start: Start, ca: trustme.CA, tmp_path: Path, connect: Connect
) -> None:
    first = issue(ca, tmp_path)
    server = start("apps:app", *CERTIFICATE, expect=("reload failed; still running",))
    server.wait_for_log("ready")
    workers = server.workers()
    (tmp_path / "server.pem").write_text("not a certificate\n")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(r"reload failed; still running.*certfile = 'server\.pem'.*no certificate in it")
    assert server.workers() == workers
    assert connect(server).certificate == first


def test_graceful_stop_with_open_connections(start: Start, ca: trustme.CA, tmp_path: Path, connect: Connect) -> None:
    issue(ca, tmp_path)
    https = start("apps:app", *CERTIFICATE, "--log-level", "debug")
    idle, busy = connect(https), connect(https)
    assert idle.get("/").status == 200
    busy.request("/sleep?0.5")
    https.wait_for_log("sleeping")
    https.send_signal(signal.SIGTERM)
    assert busy.read_response().body == b"slept"
    idle.expect_close()
    assert https.wait() == 0


# ---- bad files: no worker class matters ------------------------------------------------------------------


def refused(directory: Path, *args: str) -> str:
    done = run([*args, "-b", "127.0.0.1:0", "apps:app"], directory)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines  # nothing has been started
    return lines[0]


def test_bad_files_end_with_status_2(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    assert "certfile = 'nowhere.pem'" in refused(tmp_path, "--certfile", "nowhere.pem")
    assert "certfile = 'server.pem': there is no private key in it" in refused(tmp_path, "--certfile", "server.pem")
    (tmp_path / "other").mkdir()
    issue(ca, tmp_path / "other")
    message = refused(tmp_path, "--certfile", "server.pem", "--keyfile", "other/server.key")
    assert message.startswith("wsgiserv: error: keyfile = 'other/server.key': ")
    assert "does not belong" in message
    assert "ciphers = 'NONSENSE'" in refused(tmp_path, *CERTIFICATE, "--ciphers", "NONSENSE")
    assert "--ca-certs" in refused(tmp_path, *CERTIFICATE, "--cert-reqs", "2")
    assert "certfile = 'nowhere.pem'" in refused(tmp_path, "--check-config", "--certfile", "nowhere.pem")


def test_paths_start_at_chdir(ca: trustme.CA, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    issue(ca, tmp_path / "site")
    done = run(["--check-config", "--chdir", "site", *CERTIFICATE, "apps:app"], tmp_path)
    assert done.returncode == 0, done.stderr


def others_may_reach(path: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents))


@pytest.mark.skipif(
    os.geteuid() != 0 or not others_may_reach(Path(sys.base_prefix).resolve()),
    reason="needs root, and a Python that other users may run",
)
def test_key_that_only_root_can_read(start: Start, ca: trustme.CA, connect: Connect) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own directories are root's alone
        directory = Path(name)
        directory.chmod(0o755)
        issue(ca, directory)
        (directory / "server.key").chmod(0o600)
        server = start("apps:app", *CERTIFICATE, "--user", "65534", "--group", "65534", "--chdir", name)
        assert connect(server).get("/").status == 200
        assert os.stat(f"/proc/{server.workers()[0]}").st_uid == 65534
        assert server.stop() == 0


# Certificates out of date, keys of others, the hook alone


@pytest.mark.parametrize("worker_class", ["sync"])  # the master's work
def test_dates_of_certificates_at_start_check_and_reload(start: Start, ca: trustme.CA, tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    issue(ca, tmp_path)
    day = datetime.timedelta(days=1)
    for name, days in (("soon", 3), ("old", -3)):
        cert = ca.issue_cert("localhost", not_before=now - 9 * day, not_after=now + days * day)
        cert.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / f"{name}.pem"))
    (tmp_path / "conf.py").write_text("certfile = 'soon.pem'\n")
    soon, old = (r"\[WARNING\].*soon.pem.* expires on ", r"\[WARNING\].*old.pem.* expired on .* ago: clients refuse it")
    server = start("apps:app", "-c", "conf.py", expect=(soon, old))
    server.wait_for_log(soon)
    server.wait_for_log("ready")
    (tmp_path / "conf.py").write_text("certfile = 'old.pem'\n")
    done = run(["--check-config", "-c", "conf.py", "-b", "127.0.0.1:0", "apps:app"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^wsgiserv: warning: .*old.pem.* expired on ", done.stderr, re.MULTILINE)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(old)
    server.wait_for_log("reloaded")
    after = len(server.log.lines)
    (tmp_path / "conf.py").write_text("certfile = 'server.pem'\nkeyfile = 'server.key'\n")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded", after=after)
    assert not re.search("expire", "\n".join(server.log.lines[after:]))


@pytest.mark.parametrize("kind", ["same algorithm", "EC certificate, RSA key", "RSA certificate, EC key"])
def test_a_key_of_another_certificate(ca: trustme.CA, tmp_path: Path, kind: str) -> None:
    kinds = {"EC": trustme.KeyType.ECDSA, "RSA": trustme.KeyType.RSA}
    words = kind.replace(",", "").split() if "," in kind else ["EC", "certificate", "EC", "key"]
    ours, other = (ca.issue_cert("localhost", key_type=kinds[words[n]]) for n in (0, 2))
    (tmp_path / "c.pem").write_bytes(ours.cert_chain_pems[0].bytes())
    other.private_key_pem.write_to_path(str(tmp_path / "k.pem"))
    files = ["--certfile", "c.pem", "--keyfile", "k.pem"]
    ours.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "good.pem"))
    named = ["--certfile", "good.pem", "--sni-certificate", "shop.example=c.pem,k.pem"]
    for args in (files, ["--check-config", *files], named):
        done = run([*args, "-b", "127.0.0.1:0", "apps:app"], tmp_path)
        assert done.returncode == 2
        assert re.search(r"'k.pem': the private key does not belong to the first certificate in c.pem", done.stderr)


HOOK_ALONE = """
import ssl

def ssl_context(config, default_ssl_context_factory):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("server.pem", "server.key")
    return context
"""


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["plain", "preload"])
def test_the_hook_alone_turns_tls_on(start: Start, ca: trustme.CA, tmp_path: Path, preload: tuple[str, ...]) -> None:
    issue(ca, tmp_path)
    (tmp_path / "conf.py").write_text(HOOK_ALONE)
    server = start("apps:app", "-c", "conf.py", *preload)
    server.wait_for_log("listening on https://")
    with TLSClient(server, client_context(ca)) as client:
        assert client.get("/environ").json()["environ"]["wsgi.url_scheme"] == "https"
    if not preload:
        done = run(["--check-config", "-c", "conf.py", "-b", "127.0.0.1:0", "apps:app"], tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "https://127.0.0.1:0" in done.stdout


def test_a_hook_that_wants_a_certificate_and_has_none(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("def ssl_context(config, default):\n    return default()\n")
    for args in ([], ["--check-config"]):
        done = run([*args, "-c", "conf.py", "-b", "127.0.0.1:0", "apps:app"], tmp_path)
        assert done.returncode == 2, done.stderr
        assert "certfile is not set" in done.stderr
