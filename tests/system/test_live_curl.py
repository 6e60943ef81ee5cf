"""Real applications through curl, which asks in its own ways."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from frameworksites import APPLICATIONS, LARGE_UPLOAD_BYTES, STREAM, larger_examples, make_file, serve
from programs import curl
from server import Server, Start


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


@pytest.fixture(scope="module")
def large_upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 20 MiB."""
    return make_file(tmp_path_factory.mktemp("large"), LARGE_UPLOAD_BYTES)


@larger_examples
def test_through_curl(site: Server, framework: str, large_upload: Path, tmp_path: Path) -> None:
    url = site.url
    assert curl(url + "/") == f"Hello from {framework}\n"
    assert json.loads(curl("-d", "name=a b", "-d", "c=d", url + "/form")) == {"name": "a b", "c": "d"}
    found = curl("-H", "Content-Type: application/json", "-d", '{"a": 1}', url + "/json")
    assert json.loads(found) == {"received": {"a": 1}}
    # curl asks with Expect: 100-continue before a body of this size
    found = json.loads(curl("-F", f"file=@{large_upload}", url + "/upload"))
    assert found["size"] == LARGE_UPLOAD_BYTES
    assert found["sha256"] == hashlib.sha256(large_upload.read_bytes()).hexdigest()
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


@larger_examples
def test_curl_keeps_its_connection(site: Server) -> None:
    pages = [site.url + page for page in ("/", "/stream", "/items/1", "/error", "/missing")]
    connects = curl("-w", "\n%{num_connects}\n", *pages).splitlines()
    assert [line for line in connects if line in ("0", "1")].count("1") == 1
