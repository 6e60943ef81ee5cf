"""The error log: lines, files, rotation, broken devices, borrowed loggers, wsgi.errors, capture_output."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import logging.config
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from wsgiserv.config.settings import Settings
from wsgiserv.errors import ConfigError
from wsgiserv.logs.error import open_error_log, reopen_error_log
from wsgiserv.logs.error_stream import ErrorStream

NAMES = ("wsgiserv.error", "gunicorn.error", "wsgiserv.access", "gunicorn.access")
LINE = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[%d\] \[%s\] %s\n"


pytestmark = pytest.mark.usefixtures("loggers_as_before")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "error.log"


def line(level: str, message: str) -> str:
    return LINE % (os.getpid(), level, message)


class TestLines:
    def test_gunicorns_format(self, path: Path) -> None:
        log = open_error_log(Settings(errorlog=str(path)))
        log.info("hello %s", "world")
        log.debug("not shown")
        assert log.name == "wsgiserv.error"
        assert re.fullmatch(line("INFO", "hello world"), path.read_text())

    @pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
    def test_levels(self, path: Path, level: str) -> None:
        log = open_error_log(Settings(errorlog=str(path), loglevel=level))
        order = ("debug", "info", "warning", "error", "critical")
        for name in order:
            log.log(getattr(logging, name.upper()), name)
        shown = re.findall(r"\] (\w+)\n", path.read_text())
        assert shown == list(order[order.index(level) :])

    def test_dash_is_standard_error(self, capfd: pytest.CaptureFixture[str]) -> None:
        open_error_log(Settings(errorlog="-")).error("to stderr")
        out, err = capfd.readouterr()
        assert out == ""
        assert re.fullmatch(line("ERROR", "to stderr"), err)

    def test_appends(self, path: Path) -> None:
        path.write_text("before\n")
        open_error_log(Settings(errorlog=str(path))).info("after")
        assert path.read_text().startswith("before\n[")

    def test_traceback_keeps_its_lines_and_shows_control_characters(self, path: Path) -> None:
        log = open_error_log(Settings(errorlog=str(path)))
        try:
            raise ValueError("\x1b[2J\udcff")
        except ValueError:
            log.exception("failed")
        text = path.read_text()
        assert "\nTraceback (most recent call last):\n  File " in text
        assert r"ValueError: \x1b[2J\udcff" in text

    def test_a_message_that_cannot_be_formatted(self, path: Path) -> None:
        log = open_error_log(Settings(errorlog=str(path)))
        log.info("%d", "no number")
        assert "'%d'" in path.read_text()

    def test_a_file_that_cannot_be_opened(self, tmp_path: Path) -> None:
        target = tmp_path / "gone" / "error.log"
        with pytest.raises(ConfigError) as caught:
            open_error_log(Settings(errorlog=str(target)))
        assert "errorlog" in str(caught.value)
        assert str(target) in str(caught.value)
        assert f"mkdir -p {target.parent}" in str(caught.value)

    def test_nothing_happens_at_import(self) -> None:
        code = (
            "import logging, wsgiserv.logs.error, wsgiserv.logs.access\nprint(sorted(logging.root.manager.loggerDict))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "wsgiserv" not in done.stdout
        assert "gunicorn" not in done.stdout


class TestBrokenDevices:
    def test_full_device_and_recovery(self, tmp_path: Path) -> None:
        link = tmp_path / "log"
        link.symlink_to("/dev/full")
        log = open_error_log(Settings(errorlog=str(link)))
        for _ in range(3):
            log.error("lost")
        ErrorStream(log).write("lost as well\n")
        link.unlink()
        reopen_error_log()
        log.error("back")
        first, second = link.read_text().splitlines()
        assert "4 messages are lost" in first
        assert second.endswith("[ERROR] back")

    def test_standard_error_closed(self) -> None:
        code = (
            "import os, socket\n"
            "os.close(2)\n"
            "from wsgiserv.config.settings import Settings\n"
            "from wsgiserv.logs.error import open_error_log\n"
            "log = open_error_log(Settings())\n"
            "assert socket.socket().fileno() > 2\n"
            "log.error('nobody reads this')\n"
            "print('alive')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "alive\n"

    def test_reader_of_standard_error_is_gone(self) -> None:
        code = (
            "from wsgiserv.config.settings import Settings\n"
            "from wsgiserv.logs.error import open_error_log\n"
            "input()\n"
            "open_error_log(Settings()).error('broken pipe')\n"
            "print('alive')"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        process.stderr.close()
        process.stderr = None
        assert process.communicate("go\n", timeout=30)[0] == "alive\n"
        assert process.returncode == 0

    def test_full_pipe_in_non_blocking_mode(self, capfd: pytest.CaptureFixture[str]) -> None:
        reader, writer = os.pipe()
        saved = os.dup(2)
        try:
            os.set_blocking(writer, False)
            os.dup2(writer, 2)
            log = open_error_log(Settings())
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
            os.write(writer, b"x" * 4096)
            log.error("lost, and nobody waits long for it")
            assert os.read(reader, 65536) == b"x" * 4096
            log.error("back")
            assert b"1 message is lost" in os.read(reader, 65536)
        finally:
            os.dup2(saved, 2)
            for fd in (reader, writer, saved):
                os.close(fd)


class TestReopen:
    def test_rotation(self, path: Path) -> None:
        log = open_error_log(Settings(errorlog=str(path)))
        log.info("one")
        path.rename(path.with_suffix(".1"))
        log.info("two")
        reopen_error_log()
        log.info("three")
        assert path.with_suffix(".1").read_text().count("\n") == 2
        assert path.read_text().endswith("three\n")
        assert path.read_text().count("\n") == 1

    def test_relative_path_survives_chdir(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        log = open_error_log(Settings(errorlog="error.log"))
        (tmp_path / "error.log").unlink()
        monkeypatch.chdir("/")
        reopen_error_log()
        log.info("here")
        assert "here" in (tmp_path / "error.log").read_text()

    def test_cannot_be_opened_again(self, tmp_path: Path) -> None:
        directory = tmp_path / "logs"
        directory.mkdir()
        log = open_error_log(Settings(errorlog=str(directory / "error.log")))
        directory.rename(tmp_path / "moved")
        reopen_error_log()
        log.info("still here")
        text = (tmp_path / "moved" / "error.log").read_text()
        assert "Cannot reopen" in text
        assert "still here" in text

    def test_the_applications_own_files_are_reopened(self, path: Path, tmp_path: Path) -> None:
        open_error_log(Settings(errorlog=str(path)))
        own = tmp_path / "app.log"
        handler = logging.FileHandler(own)
        logger = logging.getLogger("some.application")
        logger.addHandler(handler)
        try:
            logger.warning("one")
            own.rename(tmp_path / "app.log.1")
            reopen_error_log()
            logger.warning("two")
            assert own.read_text() == "two\n"
        finally:
            logger.removeHandler(handler)
            handler.close()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_root_gives_the_file_to_the_workers_user(self, path: Path) -> None:
        open_error_log(Settings(errorlog=str(path), user=65534, group=65533))
        path.rename(path.with_suffix(".1"))
        reopen_error_log()
        for file in (path, path.with_suffix(".1")):
            assert (file.stat().st_uid, file.stat().st_gid) == (65534, 65533)

    def test_called_again_with_another_file(self, path: Path, tmp_path: Path) -> None:
        before = len(os.listdir("/proc/self/fd"))
        log = open_error_log(Settings(errorlog=str(path)))
        for _ in range(3):
            log = open_error_log(Settings(errorlog=str(tmp_path / "second"), loglevel="debug"))
        log.debug("after")
        assert path.read_text() == ""
        assert (tmp_path / "second").read_text().count("\n") == 1
        assert len(os.listdir("/proc/self/fd")) <= before + 1

    def test_a_failing_call_leaves_the_log_as_it_was(self, path: Path) -> None:
        log = open_error_log(Settings(errorlog=str(path)))
        with pytest.raises(ConfigError):
            open_error_log(Settings(errorlog="-", loglevel="critical", logconfig_dict={"version": 9}))
        log.info("same place")
        assert "same place" in path.read_text()


class TestBorrowedLoggers:
    def test_flask_recipe(self, path: Path) -> None:
        open_error_log(Settings(errorlog=str(path), loglevel="warning"))
        gunicorns = logging.getLogger("gunicorn.error")
        app = logging.getLogger("flask.recipe")
        app.propagate = False
        app.handlers = gunicorns.handlers
        app.setLevel(gunicorns.level)
        app.info("too low")
        app.warning("from the application")
        assert re.fullmatch(line("WARNING", "from the application"), path.read_text())
        app.handlers = []

    def test_what_a_configuration_file_added_stays_and_serves_both_names(self, path: Path) -> None:
        got: list[str] = []

        class Sentry(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                got.append(record.getMessage())

        borrowed = logging.getLogger("gunicorn.error")
        borrowed.addHandler(Sentry())
        for _ in range(2):  # a start and a reload
            log = open_error_log(Settings(errorlog=str(path)))
        log.error("one")
        borrowed.error("two")
        borrowed.addHandler(Sentry())  # by a hook, later
        log.error("three")
        assert got == ["one", "two", "three", "three"]
        assert path.read_text().count("\n") == 3

    def test_handlers_of_a_logconfig_go_with_it(self, path: Path, tmp_path: Path) -> None:
        config = {
            "handlers": {"h": {"class": "logging.FileHandler", "filename": str(tmp_path / "own")}},
            "loggers": {name: {"handlers": ["h"], "level": "INFO"} for name in NAMES},
        }
        open_error_log(Settings(errorlog=str(path), logconfig_dict=config)).error("one")
        open_error_log(Settings(errorlog=str(path))).error("two")
        assert (tmp_path / "own").read_text() == "one\n"
        assert re.fullmatch(line("ERROR", "two"), path.read_text())
        assert logging.getLogger("wsgiserv.access").handlers == []

    def test_handler_stream(self, path: Path) -> None:
        open_error_log(Settings(errorlog=str(path)))
        stream: Any = logging.getLogger("gunicorn.error").handlers[0].stream  # type: ignore[attr-defined]
        stream.write("raw\n")
        stream.flush()
        assert path.read_text() == "raw\n"

    def test_an_application_that_configures_logging_does_not_silence_us(self, path: Path) -> None:
        log = open_error_log(Settings(errorlog=str(path)))
        logging.config.dictConfig({"version": 1})  # disables existing loggers, closes every handler
        log.error("still there")
        logging.getLogger("gunicorn.error").error("this one, too")
        assert path.read_text().count("\n") == 2


class TestLogconfig:
    def config(self, name: str, target: Path) -> dict[str, Any]:
        return {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"f": {"format": "custom %(message)s"}},
            "handlers": {"h": {"class": "logging.FileHandler", "filename": str(target), "formatter": "f"}},
            "root": {"level": "INFO", "handlers": []},
            "loggers": {name: {"level": "DEBUG", "handlers": ["h"], "propagate": False}},
        }

    @pytest.mark.parametrize("name", ["gunicorn.error", "wsgiserv.error"])
    @pytest.mark.parametrize("how", ["dict", "json", "ini"])
    def test_either_name_means_the_error_log(self, path: Path, tmp_path: Path, name: str, how: str) -> None:
        target = tmp_path / "custom.log"
        settings = Settings(errorlog=str(path), logconfig_dict=self.config(name, target))
        if how == "json":
            (tmp_path / "log.json").write_text(json.dumps(self.config(name, target)))
            settings = Settings(errorlog=str(path), logconfig_json=str(tmp_path / "log.json"))
        if how == "ini":
            (tmp_path / "log.ini").write_text(
                "[loggers]\nkeys=root,error\n[handlers]\nkeys=h\n[formatters]\nkeys=f\n"
                "[logger_root]\nlevel=INFO\nhandlers=\n"
                f"[logger_error]\nlevel=DEBUG\nhandlers=h\npropagate=0\nqualname={name}\n"
                "[handler_h]\nclass=FileHandler\nformatter=f\nargs=('%(here)s/custom.log',)\n"
                "[formatter_f]\nformat=custom %(message)s\n"
            )
            settings = Settings(errorlog=str(path), logconfig=str(tmp_path / "log.ini"))
        log = open_error_log(settings)
        log.debug("one")
        logging.getLogger("gunicorn.error").info("two")
        ErrorStream(log).write("raw\n")
        assert target.read_text() == "custom one\ncustom two\nraw\n"
        assert path.read_text() == ""

    def test_unnamed_leaves_the_error_log_to_errorlog(self, path: Path, tmp_path: Path) -> None:
        log = open_error_log(Settings(errorlog=str(path), logconfig_dict=self.config("other", tmp_path / "x")))
        log.info("ours")
        assert re.fullmatch(line("INFO", "ours"), path.read_text())

    def test_what_a_dictionary_leaves_out(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = {"loggers": {"other2": {"level": "INFO", "handlers": ["error_console"], "propagate": False}}}
        open_error_log(Settings(errorlog=str(path), logconfig_dict=config))
        logging.getLogger("other2").info("through gunicorn's default handler")
        assert re.fullmatch(line("INFO", "through gunicorn's default handler"), capsys.readouterr().err)

    @pytest.mark.parametrize(
        ("setting", "text", "says"),
        [
            ("logconfig", "[loggers]\n", "logconfig = "),
            ("logconfig", None, "no such file"),
            ("logconfig_json", "{", "not JSON"),
            ("logconfig_json", "[]", "JSON object"),
            ("logconfig_json", None, "No such file"),
            ("logconfig_json", '{"handlers": {"h": {"class": "no.such.Class"}}}', "'h'"),
        ],
    )
    def test_bad_ones_name_the_setting(self, tmp_path: Path, setting: str, text: str | None, says: str) -> None:
        file = tmp_path / "logging.conf"
        if text is not None:
            file.write_text(text)
        settings: Any = {setting: str(file)}
        with pytest.raises(ConfigError) as caught:
            open_error_log(Settings(errorlog="/dev/null", **settings))
        assert setting in str(caught.value)
        assert str(file) in str(caught.value)
        assert says in str(caught.value)


class TestErrorStream:
    def test_as_written(self, path: Path) -> None:
        stream = ErrorStream(open_error_log(Settings(errorlog=str(path), loglevel="critical")))
        assert stream.write("one\n") == 4
        stream.writelines(["two\n", "thr"])
        assert path.read_text() == "one\ntwo\n"
        stream.flush()
        print("ee", file=stream)  # type: ignore[call-overload]
        assert path.read_text() == "one\ntwo\nthree\n"

    @pytest.mark.parametrize("value", [b"bytes", None, 3])
    def test_str_only(self, path: Path, value: Any) -> None:
        stream = ErrorStream(open_error_log(Settings(errorlog=str(path))))
        with pytest.raises(TypeError, match="str"):
            stream.write(value)

    def test_any_text_can_be_written(self, path: Path) -> None:
        ErrorStream(open_error_log(Settings(errorlog=str(path)))).write("\udcff \u20ac\n")
        assert path.read_text() == "\\udcff \u20ac\n"

    def test_a_line_without_end_is_not_kept_for_ever(self, path: Path) -> None:
        stream = ErrorStream(open_error_log(Settings(errorlog=str(path))))
        for _ in range(100):
            stream.write("x" * 1000)
        assert len(path.read_text()) >= 65536

    def test_threads_do_not_mix_their_lines(self, path: Path) -> None:
        stream = ErrorStream(open_error_log(Settings(errorlog=str(path))))
        begin = threading.Barrier(4)

        def work(name: str) -> None:
            begin.wait()
            for _ in range(200):
                print(name * 20, file=stream)  # type: ignore[call-overload]

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = path.read_text().splitlines()
        assert len(lines) == 800
        assert {len(text) for text in lines} == {20}
        assert all(len(set(text)) == 1 for text in lines)

    def test_a_handler_without_a_stream_gets_records(self) -> None:
        log = open_error_log(Settings(errorlog="/dev/null"))
        got: list[str] = []

        class Collect(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                got.append(record.getMessage())

        log.handlers[:] = [Collect()]
        ErrorStream(log).write("to syslog\n")
        assert got == ["to syslog"]

    def test_it_is_a_text_stream_that_stays_open(self, path: Path) -> None:
        stream = ErrorStream(open_error_log(Settings(errorlog=str(path))))
        assert isinstance(stream, io.TextIOBase)
        facts = stream.closed, stream.writable(), stream.readable(), stream.seekable(), stream.isatty()
        assert facts == (False, True, False, False, False)
        assert (stream.encoding, stream.mode, stream.newlines) == ("utf-8", "w", None)
        for refused in (stream.read, stream.readline, stream.tell, stream.detach, stream.__next__):
            with pytest.raises(io.UnsupportedOperation):
                refused()
        with stream as same:
            same.write("begun")
        assert path.read_text() == "begun"
        stream.close()
        assert not stream.closed
        stream.write(" and ended\n")
        assert path.read_text() == "begun and ended\n"
        del same, stream
        logging.getLogger("wsgiserv.error").error("the log is open")
        assert "the log is open" in path.read_text()

    def test_its_buffer_takes_bytes(self, path: Path) -> None:
        stream = ErrorStream(open_error_log(Settings(errorlog=str(path))))
        with io.TextIOWrapper(stream.buffer, "utf-8") as wrapper:
            wrapper.write("\u20ac ")
        stream.buffer.write(b"\xff\n")
        assert path.read_text() == "\u20ac \\xff\n"
        assert not stream.buffer.closed
        with pytest.raises(TypeError):
            stream.buffer.write("text")  # type: ignore[arg-type]

    def test_its_descriptor_is_the_logs_also_after_a_rotation(self, path: Path) -> None:
        log = open_error_log(Settings(errorlog=str(path)))
        stream = ErrorStream(log)
        descriptor = stream.fileno()
        path.rename(path.with_suffix(".1"))
        reopen_error_log()
        assert stream.fileno() == descriptor == log.handlers[0].stream.fileno()  # type: ignore[attr-defined]
        os.write(descriptor, b"from C\n")
        assert path.read_text() == "from C\n"

    def test_a_standard_stream_is_itself(self) -> None:
        assert ErrorStream(open_error_log(Settings(errorlog="-"))).fileno() == 2

    def test_a_log_without_a_descriptor_says_so(self) -> None:
        log = open_error_log(Settings(errorlog="/dev/null"))
        log.handlers[:] = [logging.NullHandler(), logging.StreamHandler(io.StringIO())]
        with pytest.raises(io.UnsupportedOperation):
            ErrorStream(log).fileno()

    def test_a_broken_handler_is_not_the_applications_fault(self) -> None:
        log = open_error_log(Settings(errorlog="/dev/null"))
        closed = io.StringIO()
        closed.close()
        log.handlers[:] = [logging.StreamHandler(closed)]
        ErrorStream(log).write("text\n")


class TestCaptureOutput:
    def run(self, tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
        head = (
            "import os, sys\n"
            "from wsgiserv.config.settings import Settings\n"
            "from wsgiserv.logs.error import open_error_log, reopen_error_log\n"
        )
        return subprocess.run(
            [sys.executable, "-c", head + code], cwd=tmp_path, capture_output=True, text=True, timeout=30,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    def test_everything_printed_goes_to_the_file_at_once(self, tmp_path: Path) -> None:
        done = self.run(
            tmp_path,
            "print('before')\n"
            "open_error_log(Settings(errorlog='e.log', capture_output=True)).info('logged')\n"
            "print('printed')\n"
            "os.system('echo child')\n"
            "print('failed', file=sys.stderr)\n"
            "os._exit(0)\n",
        )
        assert done.stdout == "before\n"
        assert done.stderr == ""
        lines = (tmp_path / "e.log").read_text().splitlines()
        assert lines[0].endswith("logged")
        assert lines[1:] == ["printed", "child", "failed"]

    def test_reopened_with_the_file(self, tmp_path: Path) -> None:
        self.run(
            tmp_path,
            "open_error_log(Settings(errorlog='e.log', capture_output=True))\n"
            "os.rename('e.log', 'e.log.1')\n"
            "reopen_error_log()\n"
            "print('new')\n",
        )
        assert (tmp_path / "e.log").read_text() == "new\n"
        assert (tmp_path / "e.log.1").read_text() == ""

    def test_switched_off_by_a_reload(self, tmp_path: Path) -> None:
        done = self.run(
            tmp_path,
            "open_error_log(Settings(errorlog='e.log', capture_output=True))\n"
            "open_error_log(Settings(errorlog='-')).info('to stderr')\n"
            "print('to stdout')\n",
        )
        assert done.stdout == "to stdout\n"
        assert done.stderr.endswith("to stderr\n")

    def test_without_a_file_there_is_nothing_to_capture_into(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, "open_error_log(Settings(capture_output=True))\nprint('out')\n")
        assert done.stdout == "out\n"
        assert done.stderr == ""
