"""``wsgi.file_wrapper``: whole, in part, and what goes wrong with files, in every worker class and over TLS."""

from __future__ import annotations

import gzip
import random
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from rawclient import RawClient, Truncated
from server import Connect, Server, Start, wait_until

SIZE = 3_000_000
TENS = b"0123456789" * 1000


@pytest.fixture(params=["plain", "TLS"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file with the key and the certificate."""
    path = str(tmp_path_factory.mktemp("certificate") / "all.pem")
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    return path


@pytest.fixture
def files(
    shared_servers: Start, scheme: str, ca: trustme.CA, certificate: str
) -> Iterator[tuple[Server, Callable[[], RawClient]]]:
    """A server, and how to connect to it."""
    args = ["-w", "1"]
    context: ssl.SSLContext | None = None
    if scheme == "TLS":
        args += ["--certfile", certificate, "--keyfile", certificate]
        context = ssl.create_default_context()
        ca.configure_trust(context)
    server = shared_servers("limitapps:app", *args, expect=(r"\[ERROR\].*(shorter|longer)",))
    before = len(server.log.lines)

    def connect() -> RawClient:
        client = RawClient(server.address)
        if context is not None:
            client.sock = context.wrap_socket(client.sock, server_hostname="localhost")
        return client

    yield server, connect
    server.check(before)


def test_files_of_all_kinds(files: tuple[Server, Callable[[], RawClient]], tmp_path: Path) -> None:
    server, connect = files
    before = len(server.log.lines)
    data = random.Random(3).randbytes(SIZE)
    (tmp_path / "data").write_bytes(data)
    with gzip.open(tmp_path / "data.gz", "wb") as packed:
        packed.write(TENS)
    path, packed_path = tmp_path / "data", tmp_path / "data.gz"
    with connect() as client:
        for query, expected, framing in (
            (f"path={path}", data, "length"),
            (f"path={path}&kind=raw", data, "length"),
            (f"path={path}&offset=1000", data[1000:], "length"),
            (f"path={path}&offset={SIZE}", b"", "length"),
            (f"path={path}&length=777777", data[:777_777], "length"),
            (f"path={path}&offset=5&length=777777", data[5:777_782], "length"),
            (f"path={path}&length=0", b"", "length"),
            ("kind=temporary", TENS, "length"),
            # Not a file of the kernel's, or one with other bytes than its read() gives.
            (f"path={packed_path}&kind=gzip", TENS, "chunked"),
            (f"path={packed_path}&kind=gzip&offset=10", TENS[10:], "chunked"),
            ("kind=bytes", TENS, "chunked"),
            ("kind=read&offset=10", TENS[10:], "chunked"),
        ):
            response = client.get(f"/file?{query}")
            assert (response.status, response.framing) == (200, framing), query
            assert response.body == expected, query
        response = client.get(f"/file?path={path}", method="HEAD")
        assert response.one("Content-Length") == str(SIZE)
        assert client.get("/").body == b"hello\n"
    assert not [line for line in server.log.lines[before:] if "[ERROR]" in line]


def test_a_file_shorter_than_its_content_length_ends_the_connection(
    files: tuple[Server, Callable[[], RawClient]], tmp_path: Path
) -> None:
    server, connect = files
    before = len(server.log.lines)
    (tmp_path / "data").write_bytes(TENS)
    with connect() as client:
        client.request(f"/file?path={tmp_path}/data&length=10001")
        client.request("/")
        with pytest.raises(Truncated, match="10000 of 10001"):
            client.read_response()
    server.wait_for_log("shorter than its Content-Length", after=before)


def test_a_file_that_shrinks_while_it_is_sent_ends_the_connection(
    files: tuple[Server, Callable[[], RawClient]], tmp_path: Path
) -> None:
    server, connect = files
    before = len(server.log.lines)
    (tmp_path / "data").write_bytes(b"")
    with (tmp_path / "data").open("r+b") as file:
        file.truncate(50_000_000)
        with connect() as client:
            client.request(f"/file?path={tmp_path}/data")
            client.sock.recv(1000)
            file.truncate(1000)
            rest = sum(map(len, iter(lambda: client.sock.recv(1 << 20), b"")))
            assert rest < 50_000_000
    server.wait_for_log("became shorter", after=before)
    with connect() as client:
        assert client.get("/").status == 200


@pytest.mark.no_coverage
def test_a_file_without_a_descriptor_to_spare(start: Start, connect: Connect, tmp_path: Path) -> None:
    """The server's own descriptor of the file cannot be made: the file goes through memory."""
    (tmp_path / "data").write_bytes(TENS * 30)
    app = (
        "import os, resource\n"
        "def app(environ, start_response):\n"
        "    file = open('data', 'rb')\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 1, file.fileno() + 1))\n"
        "    while True:\n"
        "        try: os.dup(0)\n"
        "        except OSError: break\n"
        "    start_response('200 OK', [])\n"
        "    return environ['wsgi.file_wrapper'](file)\n"
    )
    server = start("full:app", "-w", "1", files={"full.py": app})
    client = connect(server.address)
    assert client.get("/").body == TENS * 30


def test_ten_clients_of_a_large_file_hold_nobody(start: Start, connect: Connect, tmp_path: Path) -> None:
    """Short form of tests/soak/large.py: they read nothing, and one worker goes on answering."""
    with (tmp_path / "data").open("wb") as file:
        file.truncate(2 << 30)
    server = start("limitapps:app", "-w", "1")
    for _ in range(10):
        client = connect(server.address)
        client.request(f"/file?path={tmp_path}/data")
        assert client.sock.recv(1000).startswith(b"HTTP/1.1 200")
    for _ in range(20):
        assert connect(server.address).get("/").status == 200
    wait_until(server.workers, "the worker")
