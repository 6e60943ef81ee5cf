"""Each file of tests/corpus end to end against each worker class, whole and byte by byte."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import check_each
from rawclient import RawClient
from server import Server, Start

CORPUS = Path(__file__).parents[1] / "corpus"
sys.path.insert(0, str(CORPUS))

from corpus import Case, load  # noqa: E402 - beside the files it reads

AFTER = b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
def corpus_server(shared_servers: Start) -> Iterator[Server]:
    """Its log holds warnings of the refusals and nothing worse, and it lives on."""
    found = shared_servers("corpusapp:app", "--pythonpath", str(CORPUS), expect=(r"\[WARNING\].*127\.0\.0\.1",))
    yield found
    assert found.process.poll() is None, found.log.text
    found.check()


def converse(server: Server, case: Case, step: int) -> None:
    with RawClient(server.address) as client:
        client.offer(case.data + (AFTER if case.close else b""), step=step)
        if case.refuse:
            for _ in range(case.after):
                assert client.read_response().status == 200
            response = client.read_response()
            assert response.status == case.refuse
            assert response.interim == []
            assert response.closes
            client.expect_close()
            return
        continued = 0
        for number, (environ, body) in enumerate(case.accept, 1):
            old = environ["SERVER_PROTOCOL"] == "HTTP/1.0"
            response = client.read_response(environ["REQUEST_METHOD"], http10=old)
            assert response.status == 200
            seen = response.one("X-Seen")
            assert seen is not None
            assert json.loads(seen) == {"environ": environ, "body": body}
            assert response.closes is (case.close and number == len(case.accept))
            assert set(response.interim) <= {100}
            continued += len(response.interim)
        assert continued <= case.continues
        if case.close:
            # What was sent behind the last request may have met a socket that was closed already.
            with contextlib.suppress(ConnectionResetError):
                client.expect_close()
        else:
            client.send(AFTER)
            response = client.read_response()
            assert json.loads(response.one("X-Seen") or "")["environ"]["PATH_INFO"] == "/after"
            client.expect_nothing_more()


def test_whole_and_byte_by_byte(corpus_server: Server) -> None:
    def check(case: Case) -> None:
        converse(corpus_server, case, 0)
        converse(corpus_server, case, 1 if len(case.data) < 600 else 97)

    check_each(((case.name, case) for case in load()), check)


def test_a_client_that_waits_for_100_gets_it(corpus_server: Server) -> None:
    def check(case: Case) -> None:
        head, body = case.data.split(b"\r\n\r\n")[0] + b"\r\n\r\n", case.data.partition(b"\r\n\r\n")[2]
        with RawClient(corpus_server.address) as client:
            client.send(head)
            assert client.read_interim() == 100
            client.send(body)
            for environ, _ in case.accept:
                assert json.loads(client.read_response().one("X-Seen") or "")["environ"] == environ
            client.expect_nothing_more()

    check_each(((case.name, case) for case in load() if case.continues), check)
