"""The clients that people measure and script with: httpx, requests."""

from __future__ import annotations

import httpx
import requests
from server import Server


def test_httpx_over_one_connection(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=10) as client:
        assert client.get("/").status_code == 200
        assert client.post("/echo", data={"name": "ada", "city": "a b"}).text == "name=ada&city=a+b"
        assert client.post("/echo", json={"a": [1, 2]}).json() == {"a": [1, 2]}
        upload = b"x" * 300_000
        assert upload in client.post("/echo", files={"file": ("f.bin", upload)}).content
        assert client.post("/echo", content=iter([b"chunk ", b"by ", b"chunk"])).content == b"chunk by chunk"
        with client.stream("GET", "/big?2000000") as response:
            assert sum(map(len, response.iter_raw())) == 2_000_000
        head = client.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert client.get("/").text == "hello\n"  # nothing of a body came behind the head
        pool = client._transport._pool  # type: ignore[attr-defined]
        assert len(pool.connections) == 1


def test_requests_over_one_session(server: Server) -> None:
    with requests.Session() as session:
        session.trust_env = False
        for _ in range(3):
            assert session.get(server.url + "/", timeout=10).status_code == 200
        assert session.post(server.url + "/echo", data={"a": "1"}, timeout=10).text == "a=1"
        assert session.head(server.url + "/", timeout=10).content == b""
