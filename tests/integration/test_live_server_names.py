"""What applications that look for gunicorn, or for SCRIPT_NAME, find: compared with gunicorn itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn import SERVER_SOFTWARE as GUNICORN
from rawclient import RawClient
from server import Connect, Start, environment, run, wait_until

from wsgiserv import __version__

APP = """\
import importlib.util, json, os, sys
AT_IMPORT = (
    "gunicorn" in os.environ.get("SERVER_SOFTWARE", ""), "gunicorn" in sys.argv[0], "gunicorn" in sys.modules
)

def app(environ, start_response):
    facts = dict(
        at_import=AT_IMPORT, variable=os.environ.get("SERVER_SOFTWARE"), argv=sys.argv[0],
        found=importlib.util.find_spec("gunicorn") is not None, cgi=environ["SERVER_SOFTWARE"],
        script=environ["SCRIPT_NAME"], path=environ["PATH_INFO"],
    )
    body = json.dumps(facts).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""
LOOKS = r"WS1090 .*looks\.py line 3 looks for gunicorn"


@contextlib.contextmanager
def gunicorn(directory: Path, **env: str) -> Iterator[tuple[str, int]]:
    """Start gunicorn with the application; yield its address."""
    # The test owns the listener: no port race, and nothing to wait for.
    with socket.create_server(("127.0.0.1", 0)) as listener, open(directory / "gunicorn.log", "w") as log:
        fd = listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "-b", f"fd://{fd}", "--no-control-socket", "looks:app"]
        process = subprocess.Popen(command, cwd=directory, env=environment(env), stdout=log, stderr=log, pass_fds=(fd,))
        address = listener.getsockname()
    try:
        yield address
    finally:
        process.terminate()
        process.wait(20)


def test_by_default_the_variable_is_ours_and_a_line_proposes_more(
    start: Start, connect: Connect, tmp_path: Path
) -> None:
    server = start("looks:app", files={"looks.py": APP}, env={"SERVER_SOFTWARE": "another/1"}, expect=(LOOKS,))
    server.wait_for_log(LOOKS)
    facts = connect(server.address).get("/").json()
    assert facts["at_import"] == [False, False, False]
    assert facts["variable"] == facts["cgi"] == f"wsgiserv/{__version__}"


def test_appearing_as_gunicorn(start: Start, connect: Connect, tmp_path: Path) -> None:
    """The three are as under gunicorn, from the import on; the Server header and the environ are not."""
    server = start("looks:app", "--appear-as", "gunicorn", files={"looks.py": APP})
    answer = connect(server.address).get("/")
    ours = answer.json()
    with gunicorn(tmp_path) as address, RawClient(address) as client:
        theirs = client.get("/").json()
    assert ours["at_import"] == theirs["at_import"] == [True, True, True]
    assert ours["variable"] == theirs["variable"] == GUNICORN
    assert (ours["found"], theirs["found"]) == (True, True)
    assert ours["argv"].endswith("/gunicorn")
    assert ours["cgi"] == f"wsgiserv/{__version__}"
    assert "gunicorn" not in str(answer.one("Server"))


@pytest.mark.parametrize("place", ["zygote", "master"])
def test_it_is_so_for_a_preloaded_application_too(start_unclassed: Start, connect: Connect, place: str) -> None:
    arguments = ("--appear-as", "gunicorn", "--preload", "--preload-in", place)
    server = start_unclassed("looks:app", *arguments, files={"looks.py": APP})
    assert connect(server.address).get("/").json()["at_import"] == [True, True, True]


def test_a_reload_changes_it_and_takes_it_back(start_unclassed: Start, connect: Connect, tmp_path: Path) -> None:
    files = {"looks.py": APP, "conf.py": "appear_as = 'gunicorn'"}
    server = start_unclassed("looks:app", "-c", "conf.py", files=files)

    def reload_with(text: str) -> Any:
        (tmp_path / "conf.py").write_text(text)
        before = len(server.log.lines)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("reloaded", after=before)
        return wait_until(lambda: len(server.workers()) == 1, "the old worker has left") and ask()

    def ask() -> Any:
        return connect(server.address).get("/").json()

    assert ask()["at_import"] == [True, True, True]
    facts = reload_with("appear_as = 'off'")
    assert (facts["at_import"], facts["variable"]) == ([False, False, False], f"wsgiserv/{__version__}")
    assert reload_with("appear_as = 'off'\nraw_env = ['SERVER_SOFTWARE=gunicorn/x']")["variable"] == "gunicorn/x"
    assert reload_with("appear_as = 'gunicorn'")["at_import"] == [True, True, True]


def test_check_config_proposes_it_without_an_import(tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text(f"{APP}\nraise RuntimeError('imported')\n")
    outcome = run(["--check-config", "--preload", "looks:app"], tmp_path)
    assert outcome.returncode == 4
    lines = outcome.stderr.splitlines()
    # Before the application is loaded.
    assert "note: WS1090" in lines[0]
    assert str(tmp_path / "looks.py") in lines[0]
    assert "note: WS1091" in lines[1]
    (tmp_path / "looks.py").write_text(APP)
    outcome = run(["--check-config", "--appear-as", "off", "looks:app"], tmp_path)
    assert (outcome.returncode, "WS1090" in outcome.stderr) == (0, False)


# ---- SCRIPT_NAME -----------------------------------------------------------------------------------------

PATHS = ["/shop/x", "/shop", "/shop/", "/shop%2fx", "/shop/a%20b", "/", "/other", "/other/shop"]


def asked(address: Any, path: str) -> tuple[bool, str, str]:
    """Return whether the application was called, and with what."""
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=10)) as client:
        client.request("GET", path)
        answer = client.getresponse()
        if answer.status != 200:
            return False, "", ""
        facts = json.load(answer)
    return True, facts["script"], facts["path"]


def test_script_name_is_gunicorns(start: Start, connect: Connect, tmp_path: Path) -> None:
    expect = (LOOKS, r"WS1785 127\.0\.0\.1: refused with 400: the path /\S* is outside of SCRIPT_NAME, /shop")
    server = start("looks:app", files={"looks.py": APP}, env={"SCRIPT_NAME": "/shop"}, expect=expect)
    with gunicorn(tmp_path, SCRIPT_NAME="/shop") as address:
        for path in PATHS:
            assert asked(server.address, path) == asked(address, path), path
    # gunicorn's own "500 Bad Request"
    answer = connect(server.address).get("/other")
    assert answer.status == 400
    # A beginning that is no whole segment: gunicorn would call the application with the path "ping".
    assert connect(server.address).get("/shopping").status == 400
    # A trusted proxy's own goes before it, as there.
    head = b"GET /cart/x HTTP/1.1\r\nHost: a\r\nSCRIPT_NAME: /cart\r\n\r\n"
    client = connect(server.address)
    client.send(head)
    facts = client.read_response().json()
    assert (facts["script"], facts["path"]) == ("/cart", "/x")


def test_a_health_check_goes_past_script_name(start_unclassed: Start, connect: Connect) -> None:
    arguments = ("-e", "SCRIPT_NAME=/shop", "--readiness-path", "/ready", "--warmup", "/shop/")
    server = start_unclassed("looks:app", *arguments, files={"looks.py": APP}, expect=(LOOKS, "WS1785"))
    assert connect(server.address).get("/ready").body == b"ready\n"
    assert connect(server.address).get("/readyx").status == 400
    assert asked(server.address, "/shop/x") == (True, "/shop", "/x")


def test_a_root_path_that_is_set_serves_other_paths_still(start_unclassed: Start) -> None:
    server = start_unclassed(
        *("looks:app", "--root-path", "/shop"), files={"looks.py": APP}, env={"SCRIPT_NAME": "/x"}, expect=(LOOKS,)
    )
    assert asked(server.address, "/other") == (True, "/shop", "/other")
