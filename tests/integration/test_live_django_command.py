"""``manage.py wsgiserv`` in a project of its own (issue 17, part 4)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from projects import DJANGO, address_of, ask, python_path, run_command, wait_for_text, write
from rawclient import RawClient
from server import Output, Server, Start, wait_until

EXPECTED = (r"Traceback \(most recent call last\)",)


def serve(start: Start, directory: Path, *args: str, files: Any = None, env: Any = None) -> Server:
    server = run_command(
        start,
        directory,
        "manage.py",
        "wsgiserv",
        *args,
        files=files or DJANGO,
        env={"PYTHONUNBUFFERED": "1", **(env or {})},
    )
    server.expect(*EXPECTED)
    return server


def test_it_looks_like_runserver(start_unclassed: Start, tmp_path: Path) -> None:
    server = serve(start_unclassed, tmp_path, "0")
    pid, manage, main = ask(server).text.split()[1:]
    assert [int(pid)] == server.workers()
    assert (manage, main) == ("yes", str(tmp_path / "manage.py"))
    server.out.wait_for("Quit the server with CONTROL-C.")
    out = server.out.text
    assert out.startswith("Performing system checks...\n\nSystem check identified no issues (0 silenced).\n")
    assert "You have 1 unapplied migration(s)" in re.sub(r"\x1b\[[\d;]*m", "", out)
    assert re.search(r"\nDjango version \S+, wsgiserv \S+, using settings 'mysite.settings'\nStarting dev", out)
    assert re.search(r"Starting development server at http://127.0.0.1:\d+/\nQuit the server with CONTROL-C.", out)
    assert ask(server, "/static/shop.css").text == "body {}"
    assert ask(server, "/nowhere").status == 404
    assert ask(server, "/boom?a=b%20c").status == 500
    assert ask(server, "/stream").body == b"abcde"
    server.wait_for_log(r'"GET /stream HTTP/1.1" 200 5')
    lines = [line for line in server.log.lines if "HTTP/1.1" in line]
    assert len(lines) == 5
    texts = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines]
    assert all(re.match(r'\[\d\d/\w{3}/\d{4} \d\d:\d\d:\d\d\] "GET /', text) for text in texts)
    assert [re.split(r'" ', text)[1].split()[0] for text in texts] == ["200", "200", "404", "500", "200"]
    assert '"GET /boom?a=b%20c HTTP/1.1" 500 ' in texts[3]
    assert '"GET /static/shop.css HTTP/1.1" 200 7' in texts[1]
    assert "fails on purpose" in server.log.text
    assert server.stop(signal.SIGINT) == 0


# Its arguments run in a terminal of their own.
IN_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def test_colours_and_control_c(tmp_path: Path) -> None:
    write(tmp_path, DJANGO)
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, sys.executable, "manage.py", "wsgiserv", "0"],
        cwd=tmp_path, env=python_path(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    out = Output(process.stdout)
    try:
        address = ("127.0.0.1", int(out.wait_for(r"http://127.0.0.1:(\d+)/")[1]))
        colours = {}
        for path in ("/items", "/static/shop.css", "/nowhere"):
            with RawClient(address) as client:
                client.get(path, headers="Connection: close\r\n")
            line = out.wait_for(rf'\[\d+/\S+ \S+\] (\S*)"GET {path} HTTP')
            colours[path] = line[1]
        # Of the failed request (there is no table) and of the missing page; a success has none.
        assert colours["/items"] != colours["/nowhere"]
        assert "\x1b[" in colours["/items"]
        assert "\x1b[" in colours["/nowhere"]
        process.stdin.write(b"\x03")
        process.stdin.flush()
        assert process.wait(15) == 0, out.text
    finally:
        process.kill()
        process.stdin.close()
        process.wait()
        out.join()


def test_code_templates_and_checks_are_reloaded(start_unclassed: Start, tmp_path: Path) -> None:
    server = serve(start_unclassed, tmp_path, "0")
    wait_for_text(server, "one")
    (tmp_path / "shop/templates/index.html").write_text("two {{ words }}")
    wait_for_text(server, "two")
    server.wait_for_log(r"index.html has changed: reloading")
    views = tmp_path / "shop/views.py"
    views.write_text(
        DJANGO["shop/views.py"]
        .replace('return render(request, "index.html",', 'return print or render(request, "index.html",')
        .replace("def index(request):", "def index(request):\n    return HttpResponse('three')\n")
    )
    wait_for_text(server, "three")
    # A model that the system checks refuse, as runserver shows it; and the way back.
    models = tmp_path / "shop/models.py"
    server.expect("WS1704")
    models.write_text(DJANGO["shop/models.py"].replace("max_length=50", "max_length=-1"))
    wait_until(lambda: ask(server).status == 500, "a page that tells of the check")
    assert "fields.E121" in ask(server).text
    server.wait_for_log("fields.E121")
    models.write_text(DJANGO["shop/models.py"] + "\n1 / 0\n")
    wait_until(lambda: "ZeroDivisionError" in ask(server).text, "a page that tells of the error")
    models.write_text(DJANGO["shop/models.py"])
    wait_for_text(server, "three")
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["0", "--nostatic"], (404, "threads", True)),
        (["0", "--noreload", "-k", "gevent"], (200, "gevent", False)),
        (["-b", "127.0.0.1:0", "--nothreading", "--no-reload"], (200, "sync", False)),
        (["-6", "0", "-w", "2", "--threads=3"], (200, "threads", True)),
    ],
    ids=["static", "gevent", "sync", "ipv6"],
)
def test_flags(start_unclassed: Start, tmp_path: Path, args: list[str], expected: Any) -> None:
    server = serve(start_unclassed, tmp_path, *args, "--log-level", "info")
    status, kind, _ = expected
    wait_for_text(server, "one")
    assert ask(server, "/static/shop.css").status == status
    count = 2 if "-w" in args else 1
    assert re.search(rf"{count} {kind} worker", server.log.text)
    assert len(server.workers()) == count
    assert (address_of(server)[0] == "::1") is ("-6" in args)
    assert server.stop() == 0


def test_without_debug(start_unclassed: Start, tmp_path: Path) -> None:
    server = serve(start_unclassed, tmp_path, "0", "--insecure", env={"SITE_DEBUG": "0"})
    wait_for_text(server, "one")
    assert "Starting server at http" in server.out.text
    assert ask(server, "/static/shop.css").status == 200
    (tmp_path / "shop/templates/index.html").write_text("two")
    server.send_signal(signal.SIGHUP)
    wait_for_text(server, "two")
    server.stop()


def test_an_upgrade_and_a_second_hangup(start_unclassed: Start, tmp_path: Path) -> None:
    server = serve(start_unclassed, tmp_path, "0", "--log-level=info")
    wait_for_text(server, "one")
    server.watch_session(server.pid)
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log("the next master .* serves; this one shuts down")
    assert server.wait() == 0
    wait_for_text(server, "one")
    assert server.out.text.count("Starting development server") == 1
    [master] = {each.pid for each in server.leftovers()} - {each.pid for each in server.leftovers() if each.parent != 1}
    os.kill(master, signal.SIGTERM)
    wait_until(lambda: not server.leftovers(), "the next master has ended")


def run(directory: Path, *args: str, files: Mapping[str, str] = DJANGO) -> subprocess.CompletedProcess[str]:
    write(directory, files)
    return subprocess.run(
        [sys.executable, "manage.py", "wsgiserv", *args],
        cwd=directory, env=python_path(directory), capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (["no"], 1, "is not a valid port number or address:port pair"),
        (["0", "-w", "many"], 2, "WS1010 workers = 'many' (--workers, on the command line) cannot be used"),
        (["0", "--wrkers", "2"], 2, "unrecognized arguments: --wrkers"),
        (["0", "-b", "127.0.0.1:1:1"], 2, "an IPv6 address goes in brackets"),
    ],
    ids=["port", "value", "flag", "address"],
)
def test_mistakes(tmp_path: Path, args: list[str], status: int, text: str) -> None:
    done = run(tmp_path, *args)
    assert done.returncode == status, done.stderr
    assert text.split(" (")[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_failing_checks_end_the_start(tmp_path: Path) -> None:
    models = DJANGO["shop/models.py"].replace("max_length=50", "max_length=-1")
    done = run(tmp_path, "0", files={**DJANGO, "shop/models.py": models})
    assert done.returncode == 1
    assert "fields.E121" in done.stderr
    done = run(tmp_path, "0", "--skip-checks", "--check-config", files={**DJANGO, "shop/models.py": models})
    assert done.returncode == 0, done.stderr


def test_help_has_both_kinds_of_flags(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    for text in ("--noreload", "--nostatic", "--workers N", "server: timeouts", "addrport"):
        assert text in done.stdout, done.stdout


ONE_FILE = """
import sys
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse
from django.urls import path

settings.configure(
    DEBUG=True, ROOT_URLCONF=__name__, SECRET_KEY="x", INSTALLED_APPS=["wsgiserv.integrations.django"],
    WSGI_APPLICATION=None,
)
urlpatterns = [path("", lambda request: HttpResponse("one"))]

if __name__ == "__main__":
    execute_from_command_line([sys.argv[0], "wsgiserv", "0"])
"""


@pytest.mark.parametrize("how", ["one file", "django-admin"])
def test_other_programs(start_unclassed: Start, tmp_path: Path, how: str) -> None:
    env = {"PYTHONUNBUFFERED": "1", "DJANGO_SETTINGS_MODULE": "mysite.settings"}
    command = ["one.py"] if how == "one file" else ["-m", "django", "wsgiserv", "0"]
    server = run_command(start_unclassed, tmp_path, *command, files={**DJANGO, "one.py": ONE_FILE}, env=env)
    wait_for_text(server, "one")
    assert server.stop() == 0
