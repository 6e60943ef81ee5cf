"""The rule: --check-config tells what a configuration for gunicorn does otherwise here, and nothing of another one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hidden_gunicorn import without_gunicorn
from server import run

APPLICATION = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return []\n"

# The file, the arguments, and the notes: a pattern each. The defaults that differ are always told.
FILES: dict[str, tuple[str, list[str], list[str]]] = {
    "defaults": ("workers = 2\n", [], []),
    "defaults that are set": (
        "header_timeout = body_timeout = send_timeout = limit_request_body = 0\nkeepalive = limit_request_line = 9\n",
        [],
        [],
    ),
    "trusted proxies": (
        "forwarded_allow_ips = '10.0.0.1'\n",
        [],
        [r"forwarded_allow_ips = \['10.0.0.1'\] \(.*removed"],
    ),
    "trusted proxies by flag": ("", ["--forwarded-allow-ips", ""], [r"forwarded_allow_ips = \[\] \(.*removed"]),
    "any proxy": ("forwarded_allow_ips = '*'\n", [], []),
    "threads": ("worker_class = 'gthread'\n", [], ["worker_class = 'threads' .*timeout also ends"]),
    "threads by their number": ("threads = 2\n", [], ["worker_class = 'threads' .*timeout also ends"]),
    "a mask": ("umask = 0o27\n", [], [r"umask = 0o27 .*the mask of the workers"]),
    "a mounted application": ("root_path = '/x'\n", [], ["root_path = '/x' .*counts for WSGI"]),
    "a mounted application, by SCRIPT_NAME": ("raw_env = ['SCRIPT_NAME=/x']\n", [], ["root_path = '/x' .*with 400"]),
    "a directory for heartbeats": ("worker_tmp_dir = '/tmp'\n", [], ["worker_tmp_dir = '/tmp' .*not used"]),
    "the uwsgi protocol": ("protocol = 'uwsgi'\n", [], ["protocol = 'uwsgi' .*REMOTE_ADDR"]),
    "the PROXY protocol": ("proxy_protocol = 'v1'\n", [], ["proxy_protocol = 'v1' .*sends no header"]),
    "headers with underscores": ("forwarder_headers = 'SCRIPT_NAME'\n", [], ["forwarder_headers = .*whole segments"]),
    "a logger class": (
        "from gunicorn.glogging import Logger\nclass L(Logger): ...\nlogger_class = L\n",
        [],
        [r"logger_class = __config__\.L .*as there", r"import gunicorn \(.*stand-ins"],
    ),
    "a worker class": (
        "from gunicorn.workers.sync import SyncWorker\nclass W(SyncWorker): ...\nworker_class = W\n",
        [],
        [r"worker_class = __config__\.W .*runs on wsgiserv's", r"import gunicorn \(.*stand-ins"],
    ),
    "a hook that uses what is not there": (
        "def when_ready(s):\n    s.spawn_worker()\n    s.wakeup()\n    s.x = lambda: s.log.spawn_workers\n",
        [],
        [r"when_ready: s\.spawn_worker \(.* line 1\).*num_workers"],
    ),
    "a method that uses what is not there": (
        "class H:\n    def end(self, server):\n        server.murder_workers()\non_exit = H().end\n",
        [],
        [r"on_exit: server\.murder_workers \(.* line 2\).*timeout"],
    ),
    "a hook that asks whether it is there": ("def when_ready(s):\n    hasattr(s, 'spawn_worker')\n", [], []),
}


def place(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    (tmp_path / "app.py").write_text(APPLICATION)
    return tmp_path, without_gunicorn(tmp_path)


def notes_of(directory: Path, environ: dict[str, str], *arguments: str) -> list[str]:
    """Return what --check-config notes, without its beginning."""
    bind = [] if "-b" in arguments else ["-b", "127.0.0.1:0"]
    done = run(["--check-config", *bind, *arguments, "app:app"], directory, environ)
    assert done.returncode == 0, done.stderr
    return re.findall(r"^wsgiserv: note: (.*)", done.stderr, re.MULTILINE)


@pytest.mark.parametrize("name", FILES)
def test_differences(tmp_path: Path, name: str) -> None:
    text, arguments, patterns = FILES[name]
    directory, environ = place(tmp_path)
    (directory / "gunicorn.conf.py").write_text(text)
    notes = [note for note in notes_of(directory, environ, *arguments) if note.startswith("WS1049 ")]
    defaults = [note for note in notes if note.startswith("WS1049 the rest (defaults)")]
    told = [note for note in notes if note not in defaults]
    assert len(told) == len(patterns), told
    for pattern in patterns:
        assert [note for note in told if re.match(f"WS1049 {pattern}", note)], told
    for each in ("keepalive 75 s", "limit_request_line 8190", "send_timeout 60 s"):
        is_set = each.partition(" ")[0] in text
        assert (each in "".join(defaults)) is not is_set


@pytest.mark.parametrize(
    ("name", "text", "variable", "is_told"),
    [
        ("gunicorn.conf.py", "", "", True),
        ("gunicorn_config.py", "", "", True),
        ("deploy.py", "# for gunicorn\n", "", True),
        ("deploy.py", "", "-w 2", True),
        ("deploy.py", "", "", False),
        ("wsgiserv.conf.py", "# was gunicorn's\n", "", False),
        ("wsgiserv.conf.py", "", "-w 2", True),
    ],
)
def test_which_configurations_are_gunicorns(tmp_path: Path, name: str, text: str, variable: str, is_told: bool) -> None:
    directory, environ = place(tmp_path)
    (directory / name).write_text(f"{text}umask = 0o27\n")
    notes = notes_of(directory, {**environ, "GUNICORN_CMD_ARGS": variable}, "-c", name)
    assert any(note.startswith("WS1049 umask") for note in notes) is is_told


@pytest.mark.parametrize(
    ("address", "arguments", "is_told"),
    [
        ("0.0.0.0:0", [], True),
        (":0", [], True),
        ("[::]:0", [], True),
        ("127.0.0.1:0", [], False),
        ("localhost:0", [], False),
        ("unix:s", [], False),
        ("0.0.0.0:0", ["--forwarded-allow-ips", ""], False),
        ("0.0.0.0:0", ["--protocol", "uwsgi"], False),
    ],
)
def test_headers_that_anybody_can_send(tmp_path: Path, address: str, arguments: list[str], is_told: bool) -> None:
    directory, environ = place(tmp_path)
    notes = notes_of(directory, environ, "-b", address, *arguments)
    assert [note for note in notes if note.startswith("WS1048 ") and address in note] == notes
    assert bool(notes) is is_told


def test_what_migrate_makes_has_nothing_more_to_tell(tmp_path: Path) -> None:
    directory, environ = place(tmp_path)
    (directory / "gunicorn.conf.py").write_text("worker_class = 'gthread'\nsyslog = True\ntmp_upload_dir = '/tmp'\n")
    assert len(notes_of(directory, environ)) > 2
    done = run(["migrate", "-o", "wsgiserv.conf.py", "gunicorn.conf.py"], directory, environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert notes_of(directory, environ) == []
