"""The rule: every source has its rank, and every error says where its value came from.

The ranks of the variables are in test_config_variables.py.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from wsgiserv.config.loader import Loaded, collect, load, start_directory
from wsgiserv.config.settings import SETTINGS, Settings
from wsgiserv.errors import ConfigError


@pytest.fixture(autouse=True)
def _same_import_state() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name == "__config__" or name.startswith("conf_"):
            del sys.modules[name]


@pytest.fixture
def gun(tmp_path: Path) -> Path:
    return tmp_path / "gun.py"


def run(directory: Path, *argv: str, file: str | None = None, **environ: str) -> Loaded:
    """Load in ``directory``, with ``file`` as gun.py named by -c when it is given."""
    if file is not None:
        (directory / "gun.py").write_text(textwrap.dedent(file))
        argv = ("-c", "gun.py", *argv)
    return load(argv, environ, str(directory))


def error_of(directory: Path, *argv: str, file: str | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run(directory, *argv, file=file, **environ)
    return str(caught.value)


# Precedence


def test_nothing_given_means_the_defaults(tmp_path: Path) -> None:
    loaded = run(tmp_path)
    expected = replace(Settings(), chdir=str(tmp_path))
    assert loaded.settings == expected
    assert set(loaded.sources.values()) == {"default"}
    assert list(loaded.sources) == list(SETTINGS)
    assert loaded.notices == []


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = run(tmp_path).settings
    with pytest.raises(AttributeError, match="workers"):
        settings.workers = 3  # type: ignore[misc]


def test_each_layer_goes_before_the_one_below(tmp_path: Path) -> None:
    file = "timeout = 11\nkeepalive = 12\nbacklog = 13\nthreads = 14\n"
    loaded = run(
        tmp_path,
        "--threads",
        "24",
        file=file,
        WEB_CONCURRENCY="3",
        GUNICORN_CMD_ARGS="-t 21 --keep-alive 22",
        WSGISERV_CMD_ARGS="--keep-alive 23 --threads 9",
    )
    settings, sources = loaded.settings, loaded.sources
    assert (settings.workers, sources["workers"]) == (3, "WEB_CONCURRENCY in the environment")
    assert (settings.timeout, sources["timeout"]) == (21, "-t in GUNICORN_CMD_ARGS")
    assert (settings.keepalive, sources["keepalive"]) == (23, "--keep-alive in WSGISERV_CMD_ARGS")
    assert (settings.backlog, sources["backlog"]) == (13, "gun.py")
    assert (settings.threads, sources["threads"]) == (24, "--threads on the command line")


def test_flags_go_before_the_environments_variables(tmp_path: Path) -> None:
    loaded = run(tmp_path, "-w", "7", "-b", ":9", WEB_CONCURRENCY="3", PORT="5000")
    assert (loaded.settings.workers, loaded.settings.bind) == (7, (":9",))


def test_a_platforms_variables_are_defaults_as_in_gunicorn(tmp_path: Path) -> None:
    loaded = run(tmp_path, file="bind = '127.0.0.1:8001'\nworkers = 2", PORT="5000", WEB_CONCURRENCY="3")
    assert (loaded.settings.bind, loaded.settings.workers) == (("127.0.0.1:8001",), 2)
    assert loaded.notices == []


def test_empty_variables_are_as_if_unset(tmp_path: Path) -> None:
    loaded = run(
        tmp_path, PORT="", WEB_CONCURRENCY="", FORWARDED_ALLOW_IPS="", WSGISERV_CMD_ARGS="", GUNICORN_CMD_ARGS=" "
    )
    assert set(loaded.sources.values()) == {"default"}


def test_forwarded_allow_ips_of_the_environment_is_only_a_default(tmp_path: Path) -> None:
    assert run(tmp_path, FORWARDED_ALLOW_IPS="*").settings.forwarded_allow_ips == ("*",)
    loaded = run(tmp_path, file="forwarded_allow_ips = '10.0.0.1'", FORWARDED_ALLOW_IPS="*")
    assert loaded.settings.forwarded_allow_ips == ("10.0.0.1",)


DEFAULT = "127.0.0.1,::1"


@pytest.mark.parametrize(
    ("argv", "file", "environ", "is_given"),
    [
        ((), None, {}, False),
        ((), "workers = 2", {"FORWARDED_ALLOW_IPS": ""}, False),
        ((), "forwarded_allow_ips = None", {}, False),
        (("--forwarded-allow-ips", DEFAULT), None, {}, True),
        (("--forwarded-allow-ips", ""), None, {}, True),
        ((), f"forwarded_allow_ips = {DEFAULT!r}", {}, True),
        ((), "forwarded_allow_ips = ''", {}, True),
        ((), "forwarded_allow_ips = ()", {}, True),
        ((), None, {"FORWARDED_ALLOW_IPS": DEFAULT}, True),
        ((), None, {"WSGISERV_CMD_ARGS": f"--forwarded-allow-ips {DEFAULT}"}, True),
        ((), None, {"GUNICORN_CMD_ARGS": f"--forwarded-allow-ips {DEFAULT}"}, True),
    ],
)
def test_settings_know_what_was_given(
    tmp_path: Path, argv: tuple[str, ...], file: str | None, environ: dict[str, str], is_given: bool
) -> None:
    settings = run(tmp_path, *argv, file=file, **environ).settings
    assert ("forwarded_allow_ips" in settings.given) is is_given
    assert "backlog" not in settings.given


def test_the_same_values_are_the_same_settings_whoever_gives_them(tmp_path: Path) -> None:
    given = run(tmp_path, "--forwarded-allow-ips", DEFAULT).settings
    assert given == run(tmp_path).settings
    assert given.given != run(tmp_path).settings.given


def test_gunicorns_arguments_are_used_with_a_notice(tmp_path: Path) -> None:
    loaded = run(tmp_path, GUNICORN_CMD_ARGS="--bind=127.0.0.1:9 --name 'a b'")
    assert loaded.settings.bind == ("127.0.0.1:9",)
    assert loaded.settings.proc_name == "a b"
    assert [n for n in loaded.notices if "GUNICORN_CMD_ARGS" in n] == loaded.notices
    assert len(loaded.notices) == 1


def test_the_issues_arguments_from_the_environment(tmp_path: Path) -> None:
    settings = run(tmp_path, WSGISERV_CMD_ARGS="-b :0 -w 2").settings
    assert (settings.bind, settings.workers) == ((":0",), 2)


def test_repeated_flags_make_a_list_that_replaces_the_files(tmp_path: Path) -> None:
    loaded = run(
        tmp_path,
        *("-b", ":1", "--bind", "unix:/x", "-e", "A=1", "-e", "B=x=y"),
        file="bind = ['127.0.0.1:5', '127.0.0.1:6']",
    )
    assert loaded.settings.bind == (":1", "unix:/x")
    assert loaded.settings.raw_env == ("A=1", "B=x=y")


def test_a_switch_can_be_turned_off_again(tmp_path: Path) -> None:
    assert run(tmp_path, file="reload = True").settings.reload is True
    assert run(tmp_path, "--no-reload", file="reload = True").settings.reload is False
    assert run(tmp_path, "--no-sendfile").settings.sendfile is False


def test_the_application_by_argument_goes_before_the_files(tmp_path: Path) -> None:
    assert run(tmp_path, file="wsgi_app = 'a:b'").settings.wsgi_app == "a:b"
    loaded = run(tmp_path, "-w", "2", "c:d", "-t", "5", file="wsgi_app = 'a:b'")
    assert loaded.settings.wsgi_app == "c:d"
    assert loaded.settings.proc_name == "c:d"


def test_an_instance_does_not_share_its_dictionaries() -> None:
    Settings().logconfig_dict["x"] = 1
    assert Settings().logconfig_dict == {}


# Configuration files


def test_files_found_by_themselves(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("workers = 5")
    loaded = run(tmp_path)
    assert loaded.settings.workers == 5
    assert len(loaded.notices) == 1
    assert str(tmp_path / "gunicorn.conf.py") in loaded.notices[0]
    assert loaded.config_path == str(tmp_path / "gunicorn.conf.py")
    (tmp_path / "wsgiserv.conf.py").write_text("workers = 6")
    loaded = run(tmp_path)
    assert (loaded.settings.workers, loaded.notices) == (6, [])
    assert loaded.sources["config"] == "found by itself"
    assert run(tmp_path, file="workers = 7").settings.workers == 7


@pytest.mark.parametrize("prefix", ["", "file:"])
def test_a_file_is_named_by_path(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "any.cfg").write_text("workers = 4")
    loaded = run(tmp_path, "-c", f"{prefix}any.cfg")
    assert loaded.settings.workers == 4
    assert loaded.config_path == str(tmp_path / "any.cfg")


def test_the_file_may_be_named_in_the_environment_and_flags_win(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("workers = 4")
    (tmp_path / "b.py").write_text("workers = 5")
    assert run(tmp_path, WSGISERV_CMD_ARGS="-c a.py").settings.workers == 4
    assert run(tmp_path, "-c", "b.py", WSGISERV_CMD_ARGS="-c a.py").settings.workers == 5
    assert run(tmp_path, GUNICORN_CMD_ARGS="-c b.py", WSGISERV_CMD_ARGS="-c a.py").settings.workers == 4


def test_a_module_is_run_afresh_each_time(tmp_path: Path) -> None:
    module = tmp_path / "conf_fresh.py"
    for workers in (2, 3):  # same size, same second: the bytecode cache would not see it
        module.write_text(f"workers = {workers}")
        loaded = run(tmp_path, "-c", "python:conf_fresh")
        assert loaded.settings.workers == workers
        assert loaded.config_path == str(module)


def test_a_file_is_run_afresh_each_time(tmp_path: Path) -> None:
    assert run(tmp_path, file="workers = 2").settings.workers == 2
    assert run(tmp_path, file="timeout = 3").settings.workers == 1


def test_a_file_knows_its_own_path_and_can_import_beside_the_command(tmp_path: Path) -> None:
    (tmp_path / "conf_common.py").write_text("N = 6")
    loaded = run(tmp_path, file="from conf_common import N as workers\nproc_name = __file__")
    assert loaded.settings.workers == 6
    assert loaded.settings.proc_name == str(tmp_path / "gun.py")


def test_none_leaves_a_setting_as_it_is(tmp_path: Path) -> None:
    loaded = run(tmp_path, file="workers = None\npidfile = None\nuser = None\nsendfile = None")
    assert loaded.settings == replace(run(tmp_path).settings, config=loaded.settings.config)


def test_gunicorns_strings_for_booleans(tmp_path: Path) -> None:
    settings = run(tmp_path, file="reload = 'true'\nsendfile = 'false'\npreload_app = 'True'").settings
    assert (settings.reload, settings.sendfile, settings.preload_app) == (True, False, True)


def test_hooks_are_kept_as_the_users_functions(tmp_path: Path) -> None:
    file = """
        def post_fork(server, worker): return "forked"
        def pre_request(worker, req): pass
        def post_request(worker, req): return (worker, req)
        class Exit:
            def __call__(self, server): pass
        on_exit = Exit()
        when_ready = lambda *anything: None
    """
    settings = run(tmp_path, file=file).settings
    assert settings.post_fork is not None
    assert settings.post_fork(1, 2) == "forked"
    assert settings.post_request is not None
    assert settings.post_request(1, 2, {}, None) == (1, 2)
    assert settings.on_exit is not None
    assert settings.when_ready is not None


def test_a_hook_of_the_wrong_arity_is_refused(tmp_path: Path) -> None:
    message = error_of(tmp_path, file="\ndef post_fork(server): pass\n")
    assert "post_fork" in message
    assert "gun.py line 2" in message
    assert "2 arguments" in message
    assert "post_request" in error_of(tmp_path, file="def post_request(worker): pass")


def test_loading_leaves_the_process_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    before = (os.getcwd(), dict(os.environ))
    settings = run(tmp_path, "--chdir", "sub", "-e", "WSGISERV_TEST_X=1").settings
    assert settings.chdir == str(tmp_path / "sub")
    assert (os.getcwd(), dict(os.environ)) == before


def test_the_shells_name_of_the_directory_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    assert start_directory({"PWD": str(tmp_path / "link")}) == str(tmp_path / "link")
    assert start_directory({"PWD": "/"}) == str(tmp_path / "real")
    assert start_directory({}) == str(tmp_path / "real")


# Errors


def test_an_exception_in_the_file_shows_the_users_frames_only(tmp_path: Path) -> None:
    file = """
        def deep():
            return undefined_name
        workers = deep()
    """
    message = error_of(tmp_path, file=file)
    assert f"{tmp_path / 'gun.py'}, line 3" in message
    assert "NameError" in message
    assert "in deep" in message
    assert "configfile.py" not in message


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    message = error_of(tmp_path, file="workers = 2\nbind = = 3\n")
    assert f"{tmp_path / 'gun.py'}, line 2" in message


def test_an_exit_within_the_file_is_an_error_not_an_exit(tmp_path: Path) -> None:
    assert "no secret" in error_of(tmp_path, file="import sys\nsys.exit('no secret')")


def test_a_broken_file_leaves_the_one_before_loaded(tmp_path: Path) -> None:
    run(tmp_path, file="MARK = 1")
    error_of(tmp_path, file="MARK = 2\n1 / 0")
    assert sys.modules["__config__"].MARK == 1


@pytest.mark.parametrize("name", ["nope.py", "file:nope.py", "."])
def test_an_unreadable_file_is_named(tmp_path: Path, name: str) -> None:
    message = error_of(tmp_path, "-c", name)
    assert str(tmp_path) in message
    assert "cannot read" in message


def test_a_missing_module_and_a_missing_import_within_one_differ(tmp_path: Path) -> None:
    assert "cannot find the configuration module 'conf_nope.x'" in error_of(tmp_path, "-c", "python:conf_nope.x")
    (tmp_path / "conf_bad.py").write_text("import conf_is_not_there")
    assert "conf_is_not_there" in error_of(tmp_path, "-c", "python:conf_bad")
    assert "conf_bad" not in sys.modules


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["-w", "0"], ["workers", "'0'", "-w on the command line", "auto"]),
        (["-w", "-3"], ["workers", "'-3'"]),
        (["-w", "many"], ["workers", "'many'", "at least 1"]),
        (["-b", "localhost:http"], ["bind", "localhost:http", "HOST:PORT"]),
        (["-b", ":1", "-b", ":2", "-b", ":1"], ["bind", "':1'", "twice"]),
        (["-t", "-1"], ["timeout", "'-1'", "500ms"]),
        (["--log-level", "loud"], ["loglevel", "'loud'", "'warning'"]),
        (["-u", "no-such-user-here"], ["user", "no-such-user-here", "no such user"]),
        (["-g", "no-such-group-here"], ["group", "no such group"]),
        (["-e", "NOVALUE"], ["raw_env", "NOVALUE", "KEY=VALUE"]),
        (["--umask", "0999"], ["umask", "'0999'"]),
        (["--forwarded-allow-ips", "10.0.0.1/8"], ["forwarded_allow_ips", "10.0.0.1/8"]),
        (["--limit-request-body", "10X"], ["limit_request_body", "'10X'", "10M"]),
        (["--header-map", "allow"], ["header_map", "'allow'", "'refuse'"]),
        (["--chdir", "nowhere"], ["chdir", "nowhere", "--chdir on the command line"]),
        (["--reload-extra-file", "nope"], ["reload_extra_files", "nope"]),
        (["--keyfile", "k.pem"], ["keyfile", "certfile"]),
        (["a:b", "c:d"], ["'c:d'", "'a:b'"]),
        (["-w"], ["-w", "expected one argument"]),
        (["--wrokers", "4"], ["--wrokers", "--workers"]),
        (["--work", "4"], ["--work", "--workers"]),
        (["--limit_request_body=4"], ["--limit_request_body", "--limit-request-body"]),
        (["-Z"], ["-Z", "--help"]),
        (["-k", "gevnt"], ["worker_class", "gevnt", "'gevent'"]),
    ],
)
def test_bad_values_are_answered_with_setting_value_source_and_what_to_do(
    tmp_path: Path, argv: list[str], parts: list[str]
) -> None:
    message = error_of(tmp_path, *argv)
    for part in parts:
        assert part in message


def test_all_faults_are_collected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(
            tmp_path,
            *("-w", "0", "--wrokers=3", "-t", "-k", "tornado"),
            file="workers = 'lots'\nworkers_min = 2\nkeyfile = 'k'\ndef on_exit(): pass\n",
            PORT="http",
            GUNICORN_CMD_ARGS="-n 'open",
            WSGISERV_CMD_ARGS="--nonsense a:b c:d",
            WEB_CONCURRENCY="none",
        )
    faults = caught.value.faults
    assert str(caught.value) == "\n".join(faults)
    for words in (
        "unknown flag '--wrokers'",
        "-t/--timeout",
        "GUNICORN_CMD_ARGS",
        "unknown flag '--nonsense' in WSGISERV_CMD_ARGS",
        "workers = 'lots' (gun.py line 1)",
        "on_exit",
        "bind = '0.0.0.0:http' (PORT",
        "workers = '0' (-w on the command line)",
        "worker_class = 'tornado' (-k on the command line)",
        "keyfile = 'k'",
    ):
        assert len([fault for fault in faults if words in fault]) == 1, words
    assert len(faults) == 10
    codes = {fault[:6] for fault in faults}
    assert all(code[:3] == "WS1" and code[2:].isdigit() for code in codes), codes


def test_what_only_follows_from_a_fault_is_not_told(tmp_path: Path) -> None:
    """Without this rule one mistake would be several faults, of which all but one are none."""
    for argv, file in (
        (["--workers-min", "x", "--workers-max", "4"], None),
        (["--certfile", "a\0b", "--keyfile", "k"], None),
        (["--chdir", "nowhere", "--reload-extra-file", "none"], None),
        (["--keyfile", "k"], "1 / 0"),
        (["--wrokers", "4", "hello:app"], None),
    ):
        with pytest.raises(ConfigError) as caught:
            run(tmp_path, *argv, file=file)
        assert len(caught.value.faults) == 1, caught.value


def test_a_setting_with_a_fault_has_the_value_of_a_lower_source(tmp_path: Path) -> None:
    found = collect(["-w", "none", "-t", "5"], {"WEB_CONCURRENCY": "3"}, str(tmp_path))
    assert (found.settings.workers, found.settings.timeout) == (3, 5)
    assert (len(found.faults), found.faulty) == (1, {"workers"})


def test_bad_values_of_other_sources_name_these(tmp_path: Path) -> None:
    assert "gun.py line 2" in error_of(tmp_path, file="x = 1\nworkers = 'lots'\n")
    assert "gun.py line 1" in error_of(tmp_path, file="tmp_upload_dir = 5\n")
    assert "WEB_CONCURRENCY" in error_of(tmp_path, WEB_CONCURRENCY="lots")
    assert "PORT" in error_of(tmp_path, PORT="http")
    assert "-w in WSGISERV_CMD_ARGS" in error_of(tmp_path, WSGISERV_CMD_ARGS="-w x")
    assert "WSGISERV_CMD_ARGS" in error_of(tmp_path, WSGISERV_CMD_ARGS="-n 'open")
    assert "GUNICORN_CMD_ARGS" in error_of(tmp_path, GUNICORN_CMD_ARGS="--nonsense")


def test_a_mistyped_name_in_a_file_is_told_once_and_the_users_own_names_are_not(tmp_path: Path) -> None:
    file = """
        import os, multiprocessing
        wrokers = 3
        log_level = "debug"
        host = "127.0.0.1"
        port = 80
        cores = multiprocessing.cpu_count()
        _bnd = 1
        Workers = 2
        WORKERS = 2
        config = {"mine": 1}
        def worker(): pass
        class timeouts: pass
    """
    notices = run(tmp_path, file=file).notices
    assert len(notices) == 2
    assert "wrokers (gun.py line 3)" in notices[0]
    assert "workers?" in notices[0]
    assert "loglevel?" in notices[1]


# Settings that depend on each other


def test_threads_select_the_class_threads(tmp_path: Path) -> None:
    loaded = run(tmp_path, "--threads", "4")
    assert loaded.settings.worker_class == "threads"
    assert "--threads" in loaded.sources["worker_class"]
    assert run(tmp_path, "--threads", "4", "-k", "gevent").settings.worker_class == "gevent"
    assert run(tmp_path, "--threads", "1").settings.worker_class == "sync"


@pytest.mark.parametrize("name", ["geventwebsocket.gunicorn.workers.GeventWebSocketWorker", "flask_sockets.worker"])
def test_the_classes_of_gevent_websocket_stand_for_two_settings(tmp_path: Path, name: str) -> None:
    loaded = run(tmp_path, "-k", name)
    assert (loaded.settings.worker_class, loaded.settings.wsgi_websocket) == ("gevent", True)
    for setting in ("worker_class", "wsgi_websocket"):
        assert "geventwebsocket.gunicorn.workers" in loaded.sources[setting]
        assert "-k on the command line" in loaded.sources[setting]
    # With threads as well: it is gevent, as with gunicorn.
    assert run(tmp_path, "-k", name, "--threads", "4").settings.worker_class == "gevent"
    assert run(tmp_path, "-k", name, "--no-wsgi-websocket").settings.wsgi_websocket is False
    assert run(tmp_path, "-k", "gevent").settings.wsgi_websocket is False


def test_wsgi_websocket_wants_a_class_that_can_hold_it(tmp_path: Path) -> None:
    assert run(tmp_path, "--threads", "4", "--wsgi-websocket").settings.worker_class == "threads"
    with pytest.raises(ConfigError, match=r"WS1088 wsgi_websocket = True .* Accepted: .*'gevent' or 'threads'"):
        run(tmp_path, "--wsgi-websocket")


def test_auto_workers_become_a_number_with_its_reason(tmp_path: Path) -> None:
    loaded = run(tmp_path, "-w", "auto")
    assert loaded.settings.workers >= 1
    assert "CPU" in loaded.sources["workers"]
    assert run(tmp_path, file="workers = 'auto'").settings.workers == loaded.settings.workers


def test_extra_files_are_looked_for_in_the_new_directory(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").touch()
    argv = ("--chdir", "sub", "--reload-extra-file", "a.txt", "--reload-extra-file", "**/*.html")
    assert run(tmp_path, *argv).settings.reload_extra_files == ("a.txt", "**/*.html")


def test_names_of_processes(tmp_path: Path) -> None:
    assert run(tmp_path, "a:b", "-n", "shop").settings.proc_name == "shop"
    assert run(tmp_path, "a:b", file="default_proc_name = 'mine'").settings.proc_name == "mine"
