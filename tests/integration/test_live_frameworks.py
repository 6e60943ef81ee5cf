"""Real applications in eight frameworks, through real clients: requests and httpx."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import requests
from frameworksites import APPLICATIONS, EXAMPLES, FAILURE, STREAM, UPLOAD_BYTES, larger_examples, make_file, serve
from rawclient import RawClient
from server import Server, Start, wait_until


@pytest.fixture(scope="module", params=APPLICATIONS)
def framework(request: pytest.FixtureRequest) -> str:
    """The framework's name."""
    return str(request.param)


@pytest.fixture
def site(shared_servers: Start, worker_class: str, framework: str) -> Iterator[Server]:
    """A server of the framework's example."""
    found = serve(shared_servers, worker_class, APPLICATIONS[framework])
    yield found
    found.check()


@pytest.fixture
def debugged(shared_servers: Start, worker_class: str) -> Iterator[Server]:
    """A server of the Werkzeug example under Werkzeug's debugger."""
    found = serve(shared_servers, worker_class, "werkzeug_app:debugged")
    yield found
    found.check()


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A requests session, which keeps its connection and its cookies; it must not have needed a second one."""
    with requests.Session() as found:
        found.trust_env = False
        yield found
        pools = found.get_adapter("http://").poolmanager.pools
        opened = [pools[key].num_connections for key in pools.keys()]  # noqa: SIM118 (no plain dictionary)
        assert opened == [1], "one connection was to serve all requests"


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 3 MiB."""
    return make_file(tmp_path_factory.mktemp("upload"), UPLOAD_BYTES)


def test_a_page_a_form_a_stream_an_error(site: Server, session: requests.Session, framework: str) -> None:
    for _ in range(2):
        assert session.get(site.url + "/", timeout=10).text == f"Hello from {framework}\n"
        form = {"name": "Zoë", "text": "a b&c=d"}
        assert session.post(site.url + "/form", data=form, timeout=10).json() == form
        streamed = session.get(site.url + "/stream", timeout=10)
        assert streamed.headers["Transfer-Encoding"] == "chunked"
        assert streamed.text == STREAM
        before = len(site.log.lines)
        failed = session.get(site.url + "/error", timeout=10)
        assert failed.status_code == 500
        assert FAILURE not in failed.text
        assert "Traceback" not in failed.text
        site.wait_for_log(FAILURE, after=before)
        assert session.get(site.url + "/nowhere", timeout=10).status_code == 404
        head = session.head(site.url + "/", timeout=10)
        # Falcon wants a method of its own for HEAD.
        assert head.status_code == (405 if framework == "Falcon" else 200)
        assert head.content == b""


def test_uploads(site: Server, session: requests.Session, upload: Path) -> None:
    for _ in range(2):
        with upload.open("rb") as file:
            found = session.post(site.url + "/upload", files={"file": ("big.bin", file)}, timeout=20).json()
        digest = hashlib.sha256(upload.read_bytes()).hexdigest()
        assert found == {"name": "big.bin", "size": UPLOAD_BYTES, "sha256": digest}


def test_uploads_at_once(site: Server) -> None:
    """What a framework keeps per thread or greenlet (its request, its parser) is not another client's."""

    def send(number: int) -> None:
        body = random.Random(number).randbytes(1_200_000 + number)
        with requests.Session() as session:
            session.trust_env = False
            for turn in range(2):
                name = f"{number}-{turn}.bin"
                found = session.post(site.url + "/upload", files={"file": (name, body)}, timeout=20).json()
                digest = hashlib.sha256(body).hexdigest()
                assert found == {"name": name, "size": len(body), "sha256": digest}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(4)))


def test_bodies_in_chunks(site: Server, session: requests.Session) -> None:
    """Bodies of unknown length (requests sends an iterator as chunks), below and above body_buffer_size.

    Django, Bottle and Falcon read by CONTENT_LENGTH; Bottle decodes chunks itself where it sees Transfer-Encoding.
    """
    pieces = [b"text=", *[b"x" * 1000] * 30, b"&name=Zo%C3%AB"]
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    found = session.post(site.url + "/form", data=iter(pieces), headers=headers, timeout=10)
    assert "Content-Length" not in found.request.headers
    assert found.json() == {"text": "x" * 30_000, "name": "Zoë"}
    content = random.Random(1).randbytes(1_500_000)
    form = requests.Request("POST", site.url, files={"file": ("big.bin", content)}).prepare()
    assert isinstance(form.body, bytes)
    parts = [form.body[start : start + 100_000] for start in range(0, len(form.body), 100_000)]
    headers = {"Content-Type": form.headers["Content-Type"]}
    found = session.post(site.url + "/upload", data=iter(parts), headers=headers, timeout=10)
    digest = hashlib.sha256(content).hexdigest()
    assert found.json() == {"name": "big.bin", "size": len(content), "sha256": digest}
    assert session.get(site.url + "/", timeout=10).status_code == 200


@larger_examples
def test_through_requests(site: Server, session: requests.Session, framework: str) -> None:
    found = session.get(site.url + "/items/7?a=b", timeout=10).json()
    assert found == {"number": 7, "query": {"a": "b"}}
    value = {"list": [1, 2.5, None], "text": "日本"}
    assert session.post(site.url + "/json", json=value, timeout=10).json() == {"received": value}
    redirected = session.get(site.url + "/redirect", timeout=10)
    assert [step.status_code for step in redirected.history] == [302]
    assert redirected.text == f"Hello from {framework}\n"
    assert session.get(site.url + "/cookies/set", timeout=10).status_code == 200
    assert session.get(site.url + "/cookies", timeout=10).json() == {"flavour": "chocolate", "size": "large"}
    assert session.get(site.url + "/missing", timeout=10).status_code == 404
    assert session.put(site.url + "/form", timeout=10).status_code == 405


@larger_examples
def test_through_httpx(site: Server, framework: str) -> None:
    with httpx.Client(base_url=site.url, trust_env=False, timeout=10) as client:
        for _ in range(2):
            assert client.get("/").text == f"Hello from {framework}\n"
            assert client.post("/json", json=[1]).json() == {"received": [1]}
        with client.stream("GET", "/stream") as response:
            assert "".join(response.iter_text()) == STREAM


@pytest.mark.parametrize("framework", ["Werkzeug"], indirect=True, scope="module")
def test_static_files_through_shared_data(site: Server, session: requests.Session) -> None:
    """SharedDataMiddleware opens the file and hands it to wsgi.file_wrapper."""
    content = (EXAMPLES / "static" / "style.css").read_bytes()
    url = site.url + "/static/style.css"
    found = session.get(url, timeout=10)
    assert found.status_code == 200
    assert found.content == content
    assert found.headers["Content-Length"] == str(len(content))
    assert found.headers["Content-Type"].startswith("text/css")
    for condition in ({"If-None-Match": found.headers["ETag"]}, {"If-Modified-Since": found.headers["Last-Modified"]}):
        unchanged = session.get(url, headers=condition, timeout=10)
        assert unchanged.status_code == 304
        assert unchanged.content == b""
    assert session.get(url, headers={"If-None-Match": '"another"'}, timeout=10).content == content
    head = session.head(url, timeout=10)
    assert (head.headers["Content-Length"], head.content) == (str(len(content)), b"")
    assert session.get(site.url + "/static/", timeout=10).status_code == 404
    assert session.get(site.url + "/", timeout=10).status_code == 200


@pytest.mark.parametrize("framework", ["Werkzeug"], indirect=True, scope="module")
def test_static_files_stay_in_their_directory(site: Server) -> None:
    with RawClient(site.address) as client:
        for target in (
            "/static/../werkzeug_app.py",
            "/static/%2e%2e/werkzeug_app.py",
            "/static/..%2fwerkzeug_app.py",
            "/static/%2e%2e%2f%2e%2e%2fpyproject.toml",
            "/static/" + str(EXAMPLES / "werkzeug_app.py"),
            "/static/style.css%00.py",
        ):
            refused = client.get(target)
            assert refused.status in (400, 404), target
            assert b"import" not in refused.body
        assert client.get("/static/style.css").status == 200


def test_werkzeugs_debugger(debugged: Server, session: requests.Session) -> None:
    """It starts its response from within a generator, and its page asks for more by query strings."""
    for _ in range(2):
        assert session.get(debugged.url + "/", timeout=10).text == "Hello from Werkzeug\n"
        page = session.get(debugged.url + "/error", timeout=10)
        assert page.status_code == 500
        assert page.headers["Content-Type"].startswith("text/html")
        assert f"RuntimeError: {FAILURE}" in page.text
        assert "werkzeug_app.py" in page.text
        for name, kind in (("style.css", "text/css"), ("debugger.js", "text/javascript")):
            assert f"?__debugger__=yes&amp;cmd=resource&amp;f={name}" in page.text
            query = {"__debugger__": "yes", "cmd": "resource", "f": name}
            resource = session.get(debugged.url + "/error", params=query, timeout=10)
            assert resource.status_code == 200
            assert resource.headers["Content-Type"].startswith(kind)
            assert len(resource.content) == int(resource.headers["Content-Length"]) > 0
        query = {"__debugger__": "yes", "cmd": "resource", "f": "../__init__.py"}
        assert session.get(debugged.url + "/error", params=query, timeout=10).status_code == 404
    assert session.get(debugged.url + "/static/style.css", timeout=10).status_code == 200


# FAILS: TCP_NODELAY is set on an inherited listener when the server takes it over (net/listener.py, _inherit), and
# Linux hands a listener's options on when a handshake completes. So a client that has connected before, while it was
# systemd or a test that listened, keeps Nagle's algorithm for as long as its connection lives: the last chunk waits
# for the client's delayed acknowledgement, 40 ms for each chunked response.
def test_a_connection_older_than_the_server_is_not_delayed(start: Start) -> None:
    server = start("bottle_app:app", "--chdir", str(EXAMPLES), "-w", "1")
    with RawClient(server.address) as client:  # the listener is the test's: this does not wait for the server
        client.get("/")

        def took() -> float:
            began = time.monotonic()
            assert client.get("/stream").body.decode() == STREAM
            return time.monotonic() - began

        # With Nagle's algorithm none would be; without it a busy machine may delay some.
        wait_until(lambda: took() < 0.03, "a stream that is not delayed")
