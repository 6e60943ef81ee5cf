"""The logs against real requests: atoms, JSON, request ids, what clients cannot put into them (issue 2, part 8)."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Server, Start, wait_until

SEPARATOR = " | "
ATOMS = {
    "%(h)s": r"127\.0\.0\.1",
    "%(l)s": "-",
    "%(u)s": "ann",
    "%(t)s": r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]",
    "%(r)s": r"GET /big\?1234 HTTP/1\.1",
    "%(m)s": "GET",
    "%(U)s": "/big",
    "%(q)s": "1234",
    "%(H)s": r"HTTP/1\.1",
    "%(s)s": "200",
    "%(B)s": "1234",
    "%(b)s": "1234",
    "%(f)s": "http://from.example/",
    "%(a)s": "the agent/1.0",
    "%(T)s": "0",
    "%(M)s": r"\d+",
    "%(D)s": r"\d+",
    "%(L)s": r"0\.\d{6}",
    "%(p)s": r"<\d+>",
    "%({x-own}i)s": "own value",
    "%({content-type}o)s": "text/plain",
    "%({REMOTE_PORT}e)s": r"\d+",
    "%({x-missing}i)s": "-",
    "%({x-missing}o)s": "-",
    "%({missing}e)s": "-",
    "100%%": "100%",
}
HEADERS = (
    f"Authorization: Basic {base64.b64encode(b'ann:secret').decode()}\r\n"
    "Referer: http://from.example/\r\nUser-Agent: the agent/1.0\r\nX-Own: own value\r\n"
)


def lines_of(path: Path, number: int) -> list[str]:
    """Wait for so many lines."""
    wait_until(lambda: path.exists() and path.read_text().count("\n") >= number, f"{number} lines in {path}")
    found = path.read_text().splitlines()
    assert len(found) == number, found
    return found


def begin(start: Start, *args: str, expect: tuple[str, ...] = ()) -> Server:
    return start("apps:app", "--access-logfile", "access.log", *args, expect=expect)


def test_every_atom(start: Start, tmp_path: Path) -> None:
    server = begin(start, "--access-logformat", SEPARATOR.join(ATOMS))
    with RawClient(server.address) as client:
        client.get("/big?1234", headers=HEADERS)
    (line,) = lines_of(tmp_path / "access.log", 1)
    for (atom, pattern), value in zip(ATOMS.items(), line.split(SEPARATOR), strict=True):
        assert re.fullmatch(pattern, value), (atom, value)
    assert f"<{server.workers()[0]}>" in line
    assert "secret" not in line


def test_combined_is_the_default_and_common_is_shorter(start: Start, tmp_path: Path) -> None:
    server = begin(start)
    with RawClient(server.address) as client:
        client.get("/", headers=HEADERS)
    (line,) = lines_of(tmp_path / "access.log", 1)
    assert re.fullmatch(
        r'127\.0\.0\.1 - ann \[[^]]+\] "GET / HTTP/1\.1" 200 6 "http://from\.example/" "the agent/1\.0"', line
    )
    other = start("apps:app", "--access-logfile", "common.log", "--access-logformat", "common")
    with RawClient(other.address) as client:
        client.get("/")
    (line,) = lines_of(tmp_path / "common.log", 1)
    assert re.fullmatch(r'127\.0\.0\.1 - - \[[^]]+\] "GET / HTTP/1\.1" 200 6', line)


def test_every_request_gets_its_line_in_order(start: Start, tmp_path: Path) -> None:
    server = begin(start, "--access-logformat", "%(U)s %(q)s %(s)s")
    with RawClient(server.address) as client:
        for number in range(100):
            client.request(f"/?{number}")
        for _ in range(100):
            client.read_response()
    assert lines_of(tmp_path / "access.log", 100) == [f"/ {number} 200" for number in range(100)]


def test_no_line_is_lost_by_a_graceful_stop(start: Start, tmp_path: Path) -> None:
    server = begin(start, "-w", "2", "--access-logformat", "%(q)s")
    for number in range(40):
        with RawClient(server.address) as client:
            client.get(f"/?{number}")
    assert server.stop() == 0
    lines = (tmp_path / "access.log").read_text().splitlines()
    assert sorted(map(int, lines)) == list(range(40))


def test_the_access_log_on_the_standard_output(start: Start) -> None:
    server = start("apps:app", "--access-logfile", "-")
    with RawClient(server.address) as client:
        client.get("/?here")
    server.out.wait_for(r'"GET /\?here HTTP/1\.1" 200 6')


def test_json(start: Start, tmp_path: Path) -> None:
    server = begin(start, "--access-logformat", "json")
    with RawClient(server.address) as client:
        client.get("/big?1234", headers=HEADERS + 'X-Quote: "\\\r\n')
        client.get('/caf%C3%A9%22%0a?a="', headers='User-Agent: \xe9"\\\r\n')
    first, second = (json.loads(line) for line in lines_of(tmp_path / "access.log", 2))
    values = list(first.values())
    for value in ("GET", 200, 1234, "127.0.0.1", "the agent/1.0"):
        assert value in values, first
    numbers = [key for key, value in first.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    assert len(numbers) >= 3, "status, size and duration are numbers"
    assert set(first) == set(second)


def test_wrong_requests_are_logged_with_their_status(start: Start, tmp_path: Path) -> None:
    server = begin(start, "--access-logformat", "%(s)s %(r)s", expect=(r"\[(WARNING|ERROR)\]|Traceback",))
    with RawClient(server.address) as client:
        assert client.get("/crash").status == 500
    with RawClient(server.address) as client:
        assert client.get("/respond?%7B%22status%22:%22404%20No%22%7D").status == 404
    lines = lines_of(tmp_path / "access.log", 2)
    assert [line[:3] for line in lines] == ["500", "404"]


# Request ids


def ids(server: Server, headers: str = "") -> str:
    with RawClient(server.address) as client:
        found: str = client.get("/environ", headers=headers).json()["environ"]["wsgiserv.request_id"]
    return found


def test_a_request_id_is_made_for_every_request(start: Start, tmp_path: Path) -> None:
    server = begin(start, "--access-logformat", "%({wsgiserv.request_id}e)s")
    made = [ids(server) for _ in range(5)]
    assert len(set(made)) == 5
    assert all(re.fullmatch(r"[\x21-\x7e]{8,}", one) for one in made)
    assert lines_of(tmp_path / "access.log", 5) == made


def test_a_trusted_peers_request_id_is_taken(server: Server) -> None:
    assert ids(server, "X-Request-Id: abc-123\r\n") == "abc-123"


@pytest.mark.parametrize("value", ["", "has space", "x" * 1000, "caf\xe9"])
def test_an_unfit_request_id_is_not_taken(server: Server, value: str) -> None:
    assert ids(server, f"X-Request-Id: {value}\r\n") != value


def test_an_untrusted_peers_request_id_is_not_taken(shared_servers: Start) -> None:
    server = shared_servers("apps:app", "--forwarded-allow-ips", "10.9.9.9")
    assert ids(server, "X-Request-Id: forged\r\n") != "forged"


def test_the_request_id_is_beside_an_error(failing_server: Server) -> None:
    with RawClient(failing_server.address) as client:
        assert client.get("/crash", headers="X-Request-Id: find-me-77\r\n").status == 500
    failing_server.wait_for_log(r"\[ERROR\].*find-me-77")


# What clients and applications cannot do to a log

INJECTIONS = [
    ("/%0d%0aFAKE%20line", ""),
    ("/%1b[31mred", ""),
    ("/%00nul", ""),
    ("/%22quote", ""),
    ("/%c2%85next-line", ""),
    ("/", 'User-Agent: a" 200 0 "FAKE\r\n'),
    ("/", "User-Agent: \xe9\x85\x9b31m\r\n"),
    ("/", "Referer: tab\there\r\n"),
    ("/", "Authorization: Basic " + base64.b64encode(b"evil\r\nFAKE\x1b:x").decode() + "\r\n"),
    ("/", "X-Request-Id: a\x9bb\r\n"),
]
INJECTION_FORMAT = '%(h)s %(u)s "%(r)s" "%(U)s" "%(q)s" "%(f)s" "%(a)s" "%({x-request-id}i)s" "%({PATH_INFO}e)s"'


@pytest.mark.parametrize("form", [INJECTION_FORMAT, "combined", "json"], ids=["atoms", "combined", "json"])
def test_clients_cannot_forge_lines(start: Start, tmp_path: Path, form: str) -> None:
    server = begin(start, "--access-logformat", form)
    for target, headers in INJECTIONS:
        with RawClient(server.address) as client:
            assert client.get(target, headers=headers).status == 200
    wait_until(lambda: (tmp_path / "access.log").read_bytes().count(b"\n") >= len(INJECTIONS), "the lines")
    data = (tmp_path / "access.log").read_bytes()
    assert data.count(b"\n") == len(INJECTIONS)
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", data), data
    for line in data.decode().splitlines():
        assert not re.search("[\x80-\x9f]", line), line
        if form == "json":
            json.loads(line)
    assert len(data.decode().splitlines()) == len(INJECTIONS)
    if form == "combined":
        quoted = [re.sub(r"\\.", "", line).count('"') for line in data.decode().splitlines()]
        assert set(quoted) == {6}, "a client's quote is escaped"


def test_wsgi_errors_reaches_the_error_log(server: Server) -> None:
    with RawClient(server.address) as client:
        client.get("/log?a%20message")
    server.wait_for_log("a message")
    server.wait_for_log("second line")


@pytest.mark.parametrize("env", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["", "unbuffered"])
def test_capture_output(start: Start, tmp_path: Path, env: dict[str, str]) -> None:
    server = start("apps:app", "--capture-output", "--error-logfile", "error.log", env=env)
    log = tmp_path / "error.log"
    with RawClient(server.address) as client:
        assert client.get("/printed?words").body == b"printed"
    # Whole lines, though the master writes there, too, and though `print` writes word by word where nothing buffers.
    lines = log.read_text().splitlines()
    assert [line for line in lines if "words" in line] == ["out words", "err words"], lines
    assert server.stop() == 0
    assert "words" not in server.out.text
    assert "words" not in server.log.text


def test_levels(start: Start) -> None:
    server = start("apps:app", "--log-level", "error", expect=(r"\[ERROR\]|Traceback",))
    with RawClient(server.address) as client:
        assert client.get("/crash").status == 500
    server.wait_for_log(r"\[ERROR\]")
    assert server.stop() == 0
    assert "[INFO]" not in server.log.text
    assert "[DEBUG]" not in server.log.text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_device_under_the_logs_does_no_harm(start: Start) -> None:
    server = start("apps:app", "--access-logfile", "/dev/full", "--error-logfile", "/dev/full")
    with RawClient(server.address) as client:
        for _ in range(20):
            assert client.get("/").status == 200
            assert client.get("/log?x").status == 200
    assert server.stop() == 0


LOGCONFIG = """
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"own": {"format": "OWN %(levelname)s %(message)s"}},
    "handlers": {"file": {"class": "logging.FileHandler", "filename": "own.log", "formatter": "own"}},
    "loggers": {"wsgiserv.error": {"handlers": ["file"], "level": "INFO", "propagate": False}},
}
"""


def test_logconfig_dict(start: Start, tmp_path: Path) -> None:
    server = start("apps:app", "-c", "conf.py", files={"conf.py": LOGCONFIG})
    with RawClient(server.address) as client:
        client.get("/log?configured")
    wait_until(lambda: "configured" in (tmp_path / "own.log").read_text(), "the line in the file")
    assert "OWN INFO" in (tmp_path / "own.log").read_text()
