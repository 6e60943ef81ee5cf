"""The rule: the environment ranks as in gunicorn, and an environment file reaches everything of the server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rawclient import RawClient
from server import DEADLINE_S, Server, Start, environment, run, wait_until

# Answers with the variables that the query names, as the worker has them now and had them at its import.
APP = """
import json, os
AT_IMPORT = dict(os.environ)
def app(environ, start_response):
    names = environ["QUERY_STRING"].split(",")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([{name: each.get(name) for name in names} for each in (os.environ, AT_IMPORT)]).encode()]
"""
# What hooks and the file itself see is in the log.
CONF = """
import os
def tell(log, where):
    log.info("%s sees A=%s B=%s", where, os.environ.get("A"), os.environ.get("B"))
def when_ready(server):
    tell(server.log, "when_ready")
def post_fork(server, worker):
    tell(server.log, "post_fork")
proc_name = "file-sees-" + os.environ.get("A", "none")
"""


def seen(server: Server, *names: str) -> dict[str, str | None]:
    """Return variables as the application has them."""
    with RawClient(server.address) as client:
        now, at_import = json.loads(client.get(f"/?{','.join(names)}").body)
    assert now == at_import
    return dict(now)


# ---- precedence ------------------------------------------------------------------------------------------


def test_a_files_loopback_bind_stays_on_the_loopback(start_unclassed: Start) -> None:
    files = {"app.py": APP, "conf.py": "bind = '127.0.0.1:0'\n"}
    server = start_unclassed("app:app", "-c", "conf.py", files=files, bind="none", env={"PORT": "1"})
    server.wait_for_log(r"listening on http://127\.0\.0\.1:\d+")
    assert seen(server, "PORT") == {"PORT": "1"}
    assert "0.0.0.0" not in server.log.text


# Each source gives the first ones, and leaves the rest to those below it.
_NAMES = ("bind", "workers", "forwarded_allow_ips", "timeout")
_FILE = "bind = '127.0.0.2:1'\nworkers = 2\nforwarded_allow_ips = '10.0.0.2'\ntimeout = 2\n"
_ARGUMENTS = "--bind 127.0.0.3:1 --workers 3 --forwarded-allow-ips 10.0.0.3"
_FLAGS = ("--bind", "127.0.0.4:1", "--workers", "4")


def print_config(program: str, directory: Path, env: dict[str, str], *args: str) -> dict[str, str]:
    """Return the values that a server's --print-config shows, in one notation."""
    command = [sys.executable, "-m", program, "--print-config", *args, "app:app"]
    done = subprocess.run(
        command, cwd=directory, env={**environment({}), **env}, capture_output=True, text=True, timeout=30, check=True
    )
    rows = dict(
        re.split(r"\s+= ", line, maxsplit=1) for line in done.stdout.splitlines() if re.match(r"\w+\s+= ", line)
    )
    return {name: re.sub(r"[\s\['\]]", "", rows[name].partition(" #")[0]) for name in _NAMES}


@pytest.mark.parametrize("flags", [False, True], ids=["", "flags"])
@pytest.mark.parametrize("arguments", [False, True], ids=["", "arguments"])
@pytest.mark.parametrize("file", [False, True], ids=["", "file"])
def test_gunicorn_comes_to_the_same_values(tmp_path: Path, file: bool, arguments: bool, flags: bool) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "gunicorn.conf.py").write_text(_FILE if file else "")
    env = {"PORT": "5001", "WEB_CONCURRENCY": "1", "FORWARDED_ALLOW_IPS": "10.0.0.1"}
    env |= {"GUNICORN_CMD_ARGS": _ARGUMENTS} if arguments else {}
    args = _FLAGS if flags else ()
    assert print_config("wsgiserv", tmp_path, env, *args) == print_config("gunicorn", tmp_path, env, *args)


def test_an_unusable_port_is_ignored_with_a_line(start_unclassed: Start) -> None:
    line = r"WS1060 PORT in the environment is ignored: bind = '0\.0\.0\.0:tcp://10\.0\.0\.1:80' is not accepted"
    env = {"PORT": "tcp://10.0.0.1:80", "WSGISERV_BIND": "127.0.0.1:0"}
    server = start_unclassed("app:app", files={"app.py": APP}, bind="none", env=env, expect=(line,))
    server.wait_for_log(line)
    server.wait_for_log(r"listening on http://127\.0\.0\.1:\d+")


def test_alone_it_ends_the_start(tmp_path: Path) -> None:
    done = run(["app:app"], tmp_path, {"PORT": "http"})
    assert done.returncode == 2
    assert done.stderr.startswith("wsgiserv: error: WS1010 bind = '0.0.0.0:http' (PORT in the environment) is not")


def test_a_server_is_configured_by_variables_alone(start_unclassed: Start) -> None:
    env = {"WSGISERV_WSGI_APP": "app:app", "WSGISERV_WORKERS": "2", "WSGISERV_BIND": "127.0.0.1:0 unix:s.sock"}
    env |= {"WSGISERV_WORKER_CLASS": "threads", "WSGISERV_SOCKET_MODE": "660"}
    server = start_unclassed(None, files={"app.py": APP}, bind="none", env=env)
    server.wait_for_log(r"2 threads workers for app:app")
    server.wait_for_log(r"listening on http://127\.0\.0\.1:\d+, unix:\S+/s\.sock")
    wait_until(lambda: len(server.workers()) == 2, "two workers")


def test_unknown_and_faulty_variables(start_unclassed: Start, tmp_path: Path) -> None:
    line = r"WS1063 WSGISERV_WROKERS in the environment is no setting and is ignored\. Did you mean WSGISERV_WORKERS\?"
    server = start_unclassed("app:app", files={"app.py": APP}, env={"WSGISERV_WROKERS": "2"}, expect=(line,))
    server.wait_for_log(line)
    done = run(["app:app"], tmp_path, {"WSGISERV_WORKERS": "lots"})
    assert (done.returncode, done.stdout) == (2, "")
    assert "WS1010 workers = 'lots' (WSGISERV_WORKERS in the environment) is not accepted" in done.stderr


def test_help_all_has_the_variables(tmp_path: Path) -> None:
    done = run(["--help-all"], tmp_path)
    assert done.returncode == 0
    assert "$WSGISERV_TIMEOUT" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


# ---- environment files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [(), ("--preload",)], ids=["", "preload"])
def test_it_reaches_file_hooks_and_application_and_is_read_again(
    start: Start, tmp_path: Path, args: tuple[str, ...]
) -> None:
    files = {"app.py": APP, "conf.py": CONF, ".env": "A=1\nB=one\nOWN=file\nWSGISERV_WORKERS=2\n"}
    server = start("app:app", "-c", "conf.py", "--env-file", ".env", *args, files=files, env={"OWN": "own"})
    assert seen(server, "A", "B", "OWN") == {"A": "1", "B": "one", "OWN": "own"}
    server.wait_for_log("when_ready sees A=1 B=one")
    server.wait_for_log("post_fork sees A=1 B=one")
    wait_until(lambda: len(server.workers()) == 2 + len(args), "two workers")
    (tmp_path / ".env").write_text("A=2\nC=three\nOWN=still\nWSGISERV_WORKERS=1\n")
    server.reload()
    expected = {"A": "2", "B": None, "C": "three", "OWN": "own"}
    wait_until(lambda: len(server.workers()) == 1 + len(args), "one worker")
    assert seen(server, *expected) == expected
    server.wait_for_log("post_fork sees A=2 B=None")


def test_raw_env_goes_before_it_also_after_reloads(start_unclassed: Start, tmp_path: Path) -> None:
    files = {"app.py": APP, "conf.py": "raw_env = ['A=raw']\n", ".env": "A=1\nB=1\n"}
    server = start_unclassed("app:app", "-c", "conf.py", "--env-file", ".env", files=files)
    assert seen(server, "A", "B") == {"A": "raw", "B": "1"}
    (tmp_path / ".env").write_text("A=2\nB=2\n")
    server.reload()
    wait_until(lambda: seen(server, "A", "B") == {"A": "raw", "B": "2"}, "the new value below raw_env")
    (tmp_path / "conf.py").write_text("")
    server.reload()
    wait_until(lambda: seen(server, "A", "B") == {"A": "2", "B": "2"}, "the file's value, not the one of the start")


@pytest.mark.parametrize("broken", ["env file", "configuration", "application"])
def test_a_reload_that_fails_leaves_the_variables(start_unclassed: Start, tmp_path: Path, broken: str) -> None:
    files = {"app.py": APP, "conf.py": "", ".env": "A=1\n"}
    trouble = (r"WS1310|WS13\d\d|Traceback|\[ERROR\]|\[WARNING\]",)
    server = start_unclassed("app:app", "-c", "conf.py", "--env-file", ".env", files=files, expect=trouble)
    assert seen(server, "A", "B") == {"A": "1", "B": None}
    (tmp_path / ".env").write_text("A=2\nB=2\n" + "nonsense\n" * (broken == "env file"))
    if broken == "configuration":
        (tmp_path / "conf.py").write_text("workers = 'lots'\n")
    if broken == "application":
        (tmp_path / "app.py").write_text("1 / 0\n")
    after = len(server.log.lines)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(r"reload failed|failed to boot|the old workers", after=after)
    if broken == "env file":
        server.wait_for_log(r"WS1066 \.env line 3: is not NAME=value")
    (tmp_path / "app.py").write_text(APP)
    # A worker that replaces one of the old generation is forked with its variables.
    [worker] = wait_until(lambda: server.workers() if len(server.workers()) == 1 else [], "one worker")
    os.kill(worker, signal.SIGTERM)
    wait_until(lambda: server.workers() and worker not in server.workers(), "another worker")
    assert seen(server, "A", "B") == {"A": "1", "B": None}


def test_an_upgrade_reads_it_again(start_unclassed: Start, tmp_path: Path) -> None:
    files = {"app.py": APP, ".env": "A=1\nB=1\n"}
    server = start_unclassed("app:app", "--env-file", ".env", "--pid", "pid", files=files)
    assert seen(server, "A", "B") == {"A": "1", "B": "1"}
    (tmp_path / ".env").write_text("A=2\n")
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log(r"serves; this one shuts down")
    new = wait_until(lambda: (pid := int((tmp_path / "pid").read_text() or 0)) != server.pid and pid, "its pid file")
    try:
        assert server.process.wait(DEADLINE_S) == 0  # its standard error is the next one's, too
        assert seen(server, "A", "B") == {"A": "2", "B": None}
    finally:
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not server.leftovers(), "the end of the next master")


def test_reload_watches_it(start_unclassed: Start, tmp_path: Path) -> None:
    files = {"app.py": APP, ".env": "A=1\n"}
    server = start_unclassed("app:app", "--reload", "--env-file", ".env", files=files)
    assert seen(server, "A") == {"A": "1"}
    (tmp_path / ".env").write_text("A=changed\n")
    wait_until(lambda: seen(server, "A") == {"A": "changed"}, "the changed variable")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "WS1064 cannot read the environment file {}/.env: No such file or directory. Accepted: "),
        ("A=1\nnonsense\n", "WS1066 .env line 2: is not NAME=value. Accepted: NAME=value"),
        ("A='1\n", "WS1066 .env line 1: A has a quote that does not close. Accepted: NAME=value"),
    ],
)
@pytest.mark.parametrize("check", [[], ["--check-config"], ["--print-config"]], ids=["start", "check", "print"])
def test_a_bad_file_ends_the_start(tmp_path: Path, text: str | None, words: str, check: list[str]) -> None:
    if text is not None:
        (tmp_path / ".env").write_text(text)
    (tmp_path / "app.py").write_text(APP)
    done = run([*check, "app:app"], tmp_path, {"WSGISERV_ENV_FILE": ".env"})
    assert (done.returncode, done.stdout) == (2, "")
    assert f"wsgiserv: error: {words.format(tmp_path)}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_check_config_loads_the_application_with_it(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import os\nos.environ['ONLY_THERE']\n" + APP)
    (tmp_path / ".env").write_text("ONLY_THERE=1\n")
    done = run(["--check-config", "--env-file", ".env", "app:app"], tmp_path)
    assert done.returncode == 0, done.stderr


# ---- secrets ---------------------------------------------------------------------------------------------------


def test_no_secret_is_in_the_log_or_in_print_config(start_unclassed: Start, tmp_path: Path) -> None:
    files = {
        "app.py": APP + "\ndef make(api_key):\n    return app\n",
        ".env": "DATABASE_URL=postgres://shop:hunter2@db/shop\nSECRET_KEY=hunter2\n",
        "conf.py": "raw_env = ['DB_PASSWORD=hunter2']\n",
    }
    args = ("-c", "conf.py", "--env-file", ".env", "--log-level", "debug")
    server = start_unclassed("app:make(api_key='hunter2')", *args, files=files)
    with RawClient(server.address) as client:
        assert client.get("/?A").status == 200
    server.wait_for_log(r"for app:make\(api_key=\*\*\*")
    status = [sys.executable, "-m", "wsgiserv.ctl", "status", "--json", "--pid", str(server.pid)]
    told = subprocess.run(status, env=environment({}), capture_output=True, text=True, timeout=30, check=True).stdout
    assert json.loads(told)["server"]["application"] == "app:make(api_key=***"
    done = run([*args, "--print-config", "app:make(api_key='hunter2')"], tmp_path)
    assert done.returncode == 0
    assert "['DB_PASSWORD=***']" in done.stdout
    assert "SECRET_KEY   = '***' (.env line 2)" in done.stdout
    assert "postgres://shop:***@db/shop" in done.stdout
    assert "# *** stands for a value that looks like a secret" in done.stdout
    server.reload()
    assert server.stop() == 0
    assert "hunter2" not in done.stdout + done.stderr + server.log.text
