"""Real applications in Flask and Django, through real clients: requests, httpx and curl."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import requests
from programs import curl
from server import ROOT, Server, Start

EXAMPLES = ROOT / "examples"
UPLOAD_BYTES = 20 * 1024 * 1024
APPLICATIONS = {"Flask": "flask_app:app", "Django": "django_app:application"}


@pytest.fixture(scope="module", params=APPLICATIONS)
def framework(request: pytest.FixtureRequest) -> str:
    """The framework's name."""
    return str(request.param)


@pytest.fixture
def site(shared_servers: Start, framework: str) -> Iterator[Server]:
    """A server of the framework's example."""
    # The /error view's exception is logged by the framework.
    found = shared_servers(
        APPLICATIONS[framework],
        *("--chdir", str(EXAMPLES), "-w", "2"),
        expect=(r"Traceback|\[ERROR\]|WARNING",),
    )
    yield found
    found.check()


@pytest.fixture
def session(site: Server) -> Iterator[requests.Session]:
    """A requests session, which keeps its connections and its cookies."""
    with requests.Session() as found:
        found.trust_env = False
        yield found


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 20 MB."""
    path = tmp_path_factory.mktemp("upload") / "upload.bin"
    path.write_bytes(random.Random(20).randbytes(UPLOAD_BYTES))
    return path


STREAM = "".join(f"line {number}\n" for number in range(1000))


def test_through_requests_over_keep_alive(
    site: Server, session: requests.Session, framework: str, upload: Path
) -> None:
    for _ in range(2):
        assert session.get(site.url + "/", timeout=10).text == f"Hello from {framework}\n"
        found = session.get(site.url + "/items/7?a=b", timeout=10).json()
        assert found == {"number": 7, "query": {"a": "b"}}
        form = {"name": "Zoë", "text": "a b&c=d"}
        assert session.post(site.url + "/form", data=form, timeout=10).json() == form
        value = {"list": [1, 2.5, None], "text": "日本"}
        assert session.post(site.url + "/json", json=value, timeout=10).json() == {"received": value}
        with upload.open("rb") as file:
            found = session.post(site.url + "/upload", files={"file": ("big.bin", file)}, timeout=20).json()
        digest = hashlib.sha256(upload.read_bytes()).hexdigest()
        assert found == {"name": "big.bin", "size": UPLOAD_BYTES, "sha256": digest}
        streamed = session.get(site.url + "/stream", timeout=10)
        assert streamed.text == STREAM
        redirected = session.get(site.url + "/redirect", timeout=10)
        assert [step.status_code for step in redirected.history] == [302]
        assert redirected.text == f"Hello from {framework}\n"
        assert session.get(site.url + "/cookies/set", timeout=10).status_code == 200
        assert session.get(site.url + "/cookies", timeout=10).json() == {
            "flavour": "chocolate",
            "size": "large",
        }
        assert session.head(site.url + "/", timeout=10).status_code == 200
        assert session.get(site.url + "/missing", timeout=10).status_code == 404
        assert session.get(site.url + "/nowhere", timeout=10).status_code == 404
        assert session.get(site.url + "/error", timeout=10).status_code == 500
        assert session.put(site.url + "/form", timeout=10).status_code == 405


def test_an_upload_in_chunks(site: Server, session: requests.Session, upload: Path) -> None:
    """A body of unknown length (requests sends an iterator as chunks)."""
    body = json.dumps({"text": "x" * 100_000}).encode()
    pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
    headers = {"Content-Type": "application/json"}
    found = session.post(site.url + "/json", data=pieces, headers=headers, timeout=10)
    if "Content-Length" in found.request.headers:
        pytest.fail("requests did not send chunks")
    # Django's rule is its own: without CONTENT_LENGTH it reads nothing, and answers 400 or 500.
    assert found.status_code in (200, 400, 500)
    if found.status_code == 200:
        assert found.json()["received"]["text"] == "x" * 100_000
    assert session.get(site.url + "/", timeout=10).status_code == 200


def test_through_httpx(site: Server, framework: str) -> None:
    with httpx.Client(base_url=site.url, trust_env=False, timeout=10) as client:
        for _ in range(3):
            assert client.get("/").text == f"Hello from {framework}\n"
            assert client.post("/json", json=[1]).json() == {"received": [1]}
        with client.stream("GET", "/stream") as response:
            assert "".join(response.iter_text()) == STREAM


@pytest.mark.system
def test_through_curl(site: Server, framework: str, upload: Path, tmp_path: Path) -> None:
    url = site.url
    assert curl(url + "/") == f"Hello from {framework}\n"
    assert json.loads(curl("-d", "name=a b", "-d", "c=d", url + "/form")) == {"name": "a b", "c": "d"}
    found = curl("-H", "Content-Type: application/json", "-d", '{"a": 1}', url + "/json")
    assert json.loads(found) == {"received": {"a": 1}}
    # curl asks with Expect: 100-continue before a body of this size
    found = json.loads(curl("-F", f"file=@{upload}", url + "/upload"))
    assert found["sha256"] == hashlib.sha256(upload.read_bytes()).hexdigest()
    assert curl(url + "/stream") == STREAM
    assert curl("-L", url + "/redirect") == f"Hello from {framework}\n"
    jar = str(tmp_path / "jar")
    curl("-c", jar, url + "/cookies/set")
    assert json.loads(curl("-b", jar, url + "/cookies")) == {"flavour": "chocolate", "size": "large"}
    status = ("-o", str(tmp_path / "out"), "-w", "%{http_code}")
    assert curl(*status, url + "/missing") == "404"
    assert curl(*status, url + "/error") == "500"
    assert curl("--http1.0", url + "/stream") == STREAM
    assert "200" in curl("-I", url + "/").splitlines()[0]


@pytest.mark.system
def test_curl_keeps_its_connection(site: Server) -> None:
    pages = [
        site.url + "/",
        site.url + "/stream",
        site.url + "/items/1",
        site.url + "/error",
        site.url + "/missing",
    ]
    connects = curl("-w", "\n%{num_connects}\n", *pages).splitlines()
    assert [line for line in connects if line in ("0", "1")].count("1") == 1
