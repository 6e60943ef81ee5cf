"""The rule: the command answers what it was asked, and ends with the status that says how it went."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from server import bare_environment

import wsgiserv
from wsgiserv.cli import main
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ApplicationError, BootError, ConfigError

ROOT = Path(__file__).parents[2]

APPLICATION = """\
import os, sys

def app(environ, start_response):
    return []

def in_environment():
    assert os.environ["SHOP"] == "1=2", os.environ.get("SHOP")
    assert os.getcwd().endswith("sub"), os.getcwd()
    return app

def leave():
    os._exit(0) if os.environ.get("SILENT") else os.kill(os.getpid(), 9)
"""


def wsgiserv_command(directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m wsgiserv`` to its end in ``directory``."""
    environment = bare_environment(PYTHONWARNINGS="error", **environ)
    return subprocess.run(
        [sys.executable, "-m", "wsgiserv", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
    )


@pytest.mark.parametrize("argv", [["-k", "gevent", "--reload"], ["-c", "gun.py"]])
def test_gevent_that_is_not_installed_is_a_fault_of_the_setting(tmp_path: Path, argv: list[str]) -> None:
    (tmp_path / "gun.py").write_text("worker_class = 'gevent'\n")
    code = "import sys; sys.modules['gevent'] = None; from wsgiserv.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *argv, "--check-config", "hello:app"],
        cwd=tmp_path,
        env=bare_environment(),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("wsgiserv: error: WS1150 worker_class = 'gevent' (")


@pytest.mark.parametrize("flag", ["-v", "--version"])
def test_version_is_one_line(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main([flag]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(rf"wsgiserv {re.escape(wsgiserv.__version__)} \(Python 3\.\d+\.\d+, \w+\)\n", out)


@pytest.mark.parametrize("argv", [["-h"], ["--help"], ["-w", "2", "a:b", "--help"], ["--nonsense", "-h"]])
def test_help_is_printed_whatever_else_is_there(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("Usage: wsgiserv [OPTIONS] [APPLICATION]\n")


@pytest.mark.parametrize("argv", [["--wrokers", "4"], ["-w", "none"], ["-c", "/no/such/file.py"], ["-w"]])
def test_bad_usage_is_one_message_and_status_2(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert main([*argv, "--print-config"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wsgiserv: error: ")
    assert err.count("\n") == 1


def test_print_config_needs_no_application_and_exits_0(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--print-config", "--permit-obsolete-folding", "-t", "7"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^timeout +=\s7 +# -t on the command line$", out, re.MULTILINE)
    assert err.startswith("wsgiserv: note: WS1033 --permit-obsolete-folding")


def test_print_config_and_check_config_start_nothing_of_the_server(tmp_path: Path) -> None:
    code = (
        "import sys, wsgiserv.cli as cli; cli.main(['--print-config']);"
        "sys.exit(any(name.startswith(('wsgiserv.master.', 'gevent')) for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, timeout=50)
    assert done.returncode == 0


def test_no_application_says_how_to_name_one(tmp_path: Path) -> None:
    done = wsgiserv_command(tmp_path, "--check-config")
    assert done.returncode == 2
    assert "wsgiserv hello:app" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APPLICATION)
    (tmp_path / "sub").mkdir()
    return tmp_path


def test_check_config_of_a_good_application(shop: Path) -> None:
    done = wsgiserv_command(shop, "--check-config", "shop:app")
    assert (done.returncode, done.stderr) == (0, "")
    assert "'shop:app' loads" in done.stdout


def test_check_config_loads_with_the_settings_environment_directory_and_path(shop: Path) -> None:
    (shop / "gunicorn.conf.py").write_text("raw_env = ['SHOP=1=2']\ncheck_config = True\n")
    done = wsgiserv_command(shop, "--chdir", "sub", "--pythonpath", str(shop), "shop:in_environment()")
    assert (done.returncode, re.findall("WS[0-9]+", done.stderr)) == (0, ["WS1034", "WS1049"])
    assert "gunicorn.conf.py" in done.stderr


@pytest.mark.parametrize(
    ("source", "application", "words"),
    [
        ("1 / 0", "broken:app", "ZeroDivisionError"),
        ("import not_there_at_all", "broken:app", "not_there_at_all"),
        ("app = 3", "broken:app", "app"),
        ("appl = 3", "broken:app", "app"),
        ("import sys; sys.exit(0)", "broken:app", "broken"),
    ],
)
def test_check_config_of_a_broken_application_is_status_4(
    tmp_path: Path, source: str, application: str, words: str
) -> None:
    (tmp_path / "broken.py").write_text(source)
    done = wsgiserv_command(tmp_path, "--check-config", application)
    assert (done.returncode, done.stdout) == (4, "")
    assert words in done.stderr
    assert "wsgiserv: error: " in done.stderr


def test_check_config_of_an_application_that_kills_its_process(shop: Path) -> None:
    done = wsgiserv_command(shop, "--check-config", "shop:leave()")
    assert done.returncode == 4
    assert "signal 9" in done.stderr


def test_check_config_of_a_bad_file_is_status_2_with_the_users_traceback(tmp_path: Path) -> None:
    (tmp_path / "gun.py").write_text("workers = int('x')\n")
    done = wsgiserv_command(tmp_path, "-c", "gun.py", "--check-config", "shop:app")
    assert done.returncode == 2
    assert f"{tmp_path / 'gun.py'}, line 1" in done.stderr
    assert "site-packages" not in done.stderr
    assert str(ROOT / "wsgiserv") not in done.stderr


FAULTS = [
    "WS1001 unknown flag '--wrokers' on the command line. Did you mean --workers",
    "WS1002 argument -t/--timeout: expected one argument (in WSGISERV_CMD_ARGS)",
    "WS1010 loglevel = 'wanring' (--log-level on the command line) is not accepted. Did you mean 'warning'? Accepted",
    "WS1010 backlog = 'lots' (gun.py line 1) is not accepted",
    "WS1010 worker_class = 'gevnt' (gun.py line 2) is not accepted: not a worker class. Did you mean 'gevent'?",
    "WS1010 workers = 'many' (WEB_CONCURRENCY in the environment) is not accepted",
    "WS1013 keyfile = 'k.pem' (gun.py) is given without a certificate",
    "WS1050 no application is named",
    "access_log_format",
    "spool_dir = '/nowhere'",
    "control_socket = '/nowhere/c'",
]


@pytest.mark.parametrize("check", [[], ["--check-config"]], ids=["start", "check"])
def test_all_faults_of_flags_file_and_environment_are_told_in_one_run(tmp_path: Path, check: list[str]) -> None:
    (tmp_path / "gun.py").write_text(
        "backlog = 'lots'\nworker_class = 'gevnt'\nkeyfile = 'k.pem'\n"
        "access_log_format = '%(nonsense'\nspool_dir = '/nowhere'\ncontrol_socket = '/nowhere/c'\n"
    )
    done = wsgiserv_command(
        tmp_path,
        *(*check, "-c", "gun.py", "--wrokers=4", "--log-level", "wanring"),
        WSGISERV_CMD_ARGS="--timeout",
        WEB_CONCURRENCY="many",
    )
    assert (done.returncode, done.stdout) == (2, "")
    told = [line for line in done.stderr.splitlines() if line.startswith("wsgiserv: error: ")]
    for words in FAULTS:
        assert len([line for line in told if words in line]) == 1, (words, done.stderr)
    assert len(told) == len(FAULTS)


def test_a_bad_configuration_stops_the_start(tmp_path: Path) -> None:
    done = wsgiserv_command(tmp_path, "hello:app", WSGISERV_CMD_ARGS="-w none")
    assert done.returncode == 2
    assert done.stderr.startswith("wsgiserv: error: WS1010 workers = 'none' (-w in WSGISERV_CMD_ARGS)")


class FakeMaster:
    """Stands where the master would: notes what it is given, then does what the test says."""

    made: ClassVar[list[FakeMaster]] = []
    outcome: ClassVar[Callable[[FakeMaster], int]]

    def __init__(self, settings: Settings, **given: Any) -> None:
        self.settings = settings
        self.given = given
        self.made.append(self)

    def run(self) -> int:
        return type(self).outcome(self)


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeMaster]:
    monkeypatch.setattr("wsgiserv.master.master.Master", FakeMaster)
    monkeypatch.setattr("wsgiserv.logs.error.open_error_log", lambda settings: os.getcwd())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    FakeMaster.made.clear()
    FakeMaster.outcome = lambda made: 0
    return FakeMaster


def test_the_master_runs_with_the_settings_in_their_directory(master: type[FakeMaster], tmp_path: Path) -> None:
    assert main(["--chdir", "sub", "-w", "2", "--permit-obsolete-folding", "a:b"]) == 0
    (made,) = master.made
    assert made.settings.workers == 2
    assert len([notice for notice in made.given["notices"] if "as root" not in notice]) == 1
    assert made.given["log"] == str(tmp_path / "sub")  # where the error log was opened
    assert made.given["invocation"].directory == str(tmp_path)  # where the next master is to start
    assert made.given["old_master"] is None


def test_a_reload_reads_the_same_file_again_from_the_first_directory(
    master: type[FakeMaster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gun.py"
    file.write_text("workers = 2\nchdir = 'sub'\nraw_env = ['PORT=1']\n")
    monkeypatch.setenv("PORT", "5000")

    def outcome(made: FakeMaster) -> int:
        os.environ["PORT"] = "1"  # as the master does with raw_env
        file.write_text("workers = 3\nchdir = 'sub'\n")
        loaded = made.given["reload_settings"]()
        assert (loaded.settings.workers, loaded.settings.bind) == (3, ("0.0.0.0:5000",))
        assert loaded.settings.chdir == str(tmp_path / "sub")
        file.write_text("workers = 'lots'\n")
        with pytest.raises(ConfigError, match=r"gun\.py line 1"):
            made.given["reload_settings"]()
        file.write_text("workers = 'lots'\nchdir = '.'\nspool_dir = 'nowhere'\naccess_log_format = '%(x'\n")
        with pytest.raises(ConfigError) as caught:
            made.given["reload_settings"]()
        for name, fault in zip(("workers", "access_log_format", "spool_dir"), caught.value.faults, strict=True):
            assert name in fault
        assert os.getcwd() == str(tmp_path / "sub")  # of the configuration in force
        return 0

    master.outcome = outcome
    assert main(["-c", "gun.py", "a:b"]) == 0


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ConfigError("port in use"), 2, "wsgiserv: error: port in use\n"),
        (BootError("workers die"), 3, "wsgiserv: error: workers die\n"),
        (ApplicationError("no app", "Traceback: theirs\n"), 4, "Traceback: theirs\nwsgiserv: error: no app\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_of_the_master_is_told_and_gives_its_status(
    master: type[FakeMaster], capsys: pytest.CaptureFixture[str], error: BaseException, status: int, words: str
) -> None:
    def outcome(made: FakeMaster) -> int:
        raise error

    master.outcome = outcome
    assert main(["a:b"]) == status
    assert capsys.readouterr().err == words


def test_without_an_application_nothing_starts(master: type[FakeMaster], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "hello:app" in capsys.readouterr().err
    assert master.made == []
