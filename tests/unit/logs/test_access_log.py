"""The access log's buffer and file: one write, partial writes, full devices, rotation, the logging module."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from wsgiserv.config.settings import Settings
from wsgiserv.errors import ConfigError
from wsgiserv.logs import access, output
from wsgiserv.logs.access import AccessLog, open_access_log
from wsgiserv.logs.error import open_error_log

ENVIRON: dict[str, Any] = {
    "REMOTE_ADDR": "192.0.2.7",
    "REQUEST_METHOD": "GET",
    "RAW_URI": "/",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_USER_AGENT": 'a"b',
    "wsgiserv.request_id": "id-1",
}


pytestmark = pytest.mark.usefixtures("loggers_as_before")


@pytest.fixture
def errors(tmp_path: Path) -> Path:
    """The error log's file."""
    return tmp_path / "errors"


def opened(errors: Path, access_log_format: str = "%(s)s", **settings: Any) -> AccessLog:
    whole = Settings(errorlog=str(errors), access_log_format=access_log_format, **settings)
    log = open_access_log(whole, open_error_log(whole))
    assert log is not None
    return log


def note(log: AccessLog, *statuses: int) -> None:
    for status in statuses:
        log.log(ENVIRON, status, [], 0, 0.0)


class TestWriting:
    def test_off_by_default(self, errors: Path) -> None:
        assert open_access_log(Settings(), open_error_log(Settings(errorlog=str(errors)))) is None

    def test_written_at_flush_with_one_write(
        self, tmp_path: Path, errors: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[bytes] = []

        def count(fd: int, data: bytes) -> int:
            written.append(bytes(data))
            return os.write(fd, data)

        path = tmp_path / "access"
        log = opened(errors, accesslog=str(path))
        monkeypatch.setattr(output, "write_fd", count)
        note(log, 200, 404, 500)
        assert path.read_text() == ""
        log.flush()
        log.flush()
        assert written == [b"200\n404\n500\n"]
        assert path.read_text() == "200\n404\n500\n"

    def test_standard_output(self, errors: Path, capfd: pytest.CaptureFixture[str]) -> None:
        log = opened(errors, accesslog="-")
        note(log, 200)
        log.close()
        assert capfd.readouterr().out == "200\n"
        os.fstat(1)

    def test_close_writes_the_rest(self, tmp_path: Path, errors: Path) -> None:
        log = opened(errors, accesslog=str(tmp_path / "access"))
        note(log, 200)
        log.close()
        assert (tmp_path / "access").read_text() == "200\n"

    def test_partial_writes(self, tmp_path: Path, errors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log = opened(errors, accesslog=str(tmp_path / "access"))
        monkeypatch.setattr(output, "write_fd", lambda fd, data: os.write(fd, data[:3]))
        note(log, 200, 404, 500)
        log.flush()
        assert (tmp_path / "access").read_text() == "200\n404\n500\n"
        assert errors.read_text() == ""

    def test_rotation(self, tmp_path: Path, errors: Path) -> None:
        path = tmp_path / "access"
        log = opened(errors, accesslog=str(path))
        note(log, 200)
        path.rename(tmp_path / "access.1")
        log.reopen()
        note(log, 404)
        log.flush()
        assert (tmp_path / "access.1").read_text() == "200\n"
        assert path.read_text() == "404\n"

    def test_cannot_be_opened(self, errors: Path) -> None:
        with pytest.raises(ConfigError, match=r"accesslog = '/no/such/dir/access'.*mkdir -p /no/such/dir"):
            opened(errors, accesslog="/no/such/dir/access")

    def test_bad_format_is_found_when_the_log_is_off(self, errors: Path) -> None:
        with pytest.raises(ConfigError, match="access_log_format"):
            open_access_log(Settings(access_log_format="%(zz"), logging.getLogger("x"))


class TestTrouble:
    def test_full_device_warns_once_keeps_lines_and_recovers(
        self, tmp_path: Path, errors: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [100.0]
        monkeypatch.setattr(access, "monotonic", lambda: clock[0])
        link = tmp_path / "access"
        link.symlink_to("/dev/full")
        log = opened(errors, accesslog=str(link))
        for _ in range(5):
            note(log, 200)
            log.flush()
            clock[0] += 0.6
        assert errors.read_text().count("\n") == 1
        assert "No space left on device" in errors.read_text()
        assert str(link) in errors.read_text()
        link.unlink()
        log.reopen()
        log.flush()
        assert link.read_text() == "200\n" * 5
        assert "0 lines are lost" in errors.read_text()

    def test_the_buffer_is_bounded_and_the_loss_is_told(
        self, tmp_path: Path, errors: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(access, "_MOST_WAITING_BYTES", 40)
        link = tmp_path / "access"
        link.symlink_to("/dev/full")
        log = opened(errors, accesslog=str(link))
        for _ in range(25):
            note(log, 200)
            log.flush()
        link.unlink()
        log.reopen()
        log.flush()
        assert link.read_text() == "200\n" * 10
        assert "15 lines are lost" in errors.read_text()

    def test_no_syscalls_while_it_waits_to_retry(
        self, tmp_path: Path, errors: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []

        def fail(fd: int, data: bytes) -> int:
            calls.append(fd)
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(access, "monotonic", lambda: 100.0)
        log = opened(errors, accesslog=str(tmp_path / "access"))
        with monkeypatch.context() as patch:
            patch.setattr(output, "write_fd", fail)
            for _ in range(10):
                note(log, 200)
                log.flush()
            log.close()
        assert len([fd for fd in calls if fd != 0]) <= 4  # the first try, the warning, and the last at close

    def test_full_pipe_loses_nothing(self, errors: Path) -> None:
        reader, writer = os.pipe()
        saved = os.dup(1)
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
            os.set_blocking(writer, False)
            os.dup2(writer, 1)
            log = opened(errors, accesslog="-", access_log_format="%(s)s " + "x" * 100)
            got = b""
            for status in range(1000, 1200):
                note(log, status)
                log.flush()
            while got.count(b"\n") < 200:
                got += os.read(reader, 65536)
                log.flush()
        finally:
            os.dup2(saved, 1)
            for fd in (reader, writer, saved):
                os.close(fd)
        assert [int(text.split()[0]) for text in got.splitlines()] == list(range(1000, 1200))
        assert errors.read_text() == ""

    def test_a_pipe_gets_whole_lines_of_at_most_pipe_buf(self, errors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reader, writer = os.pipe()
        saved = os.dup(1)
        written: list[bytes] = []

        def count(fd: int, data: bytes) -> int:
            written.append(bytes(data))
            return os.write(fd, data)

        try:
            os.dup2(writer, 1)
            log = opened(errors, accesslog="-", access_log_format="%(s)s " + "x" * 1000)
            monkeypatch.setattr(output, "write_fd", count)
            note(log, *range(100, 120))
            log.flush()
        finally:
            os.dup2(saved, 1)
            for fd in (reader, writer, saved):
                os.close(fd)
        assert len(written) == 5
        assert all(len(data) <= 4096 and data.endswith(b"\n") for data in written)

    def test_reader_gone(self, errors: Path) -> None:
        reader, writer = os.pipe()
        saved = os.dup(1)
        try:
            os.dup2(writer, 1)
            os.close(reader)
            log = opened(errors, accesslog="-")
            note(log, 200)
            log.flush()
            log.close()
        finally:
            os.dup2(saved, 1)
            os.close(writer)
            os.close(saved)
        assert "Broken pipe" in errors.read_text()
        assert "standard output" in errors.read_text()

    def test_cannot_be_reopened(self, tmp_path: Path, errors: Path) -> None:
        directory = tmp_path / "logs"
        directory.mkdir()
        log = opened(errors, accesslog=str(directory / "access"))
        directory.rename(tmp_path / "moved")
        log.reopen()
        note(log, 200)
        log.flush()
        assert (tmp_path / "moved" / "access").read_text() == "200\n"
        assert "Cannot reopen the access log" in errors.read_text()


class TestThroughLogging:
    def dictionary(self, name: str, target: Path) -> dict[str, Any]:
        return {
            "handlers": {"h": {"class": "logging.FileHandler", "filename": str(target), "formatter": "f"}},
            "formatters": {"f": {"format": "custom %(message)s"}},
            "loggers": {name: {"handlers": ["h"], "level": "INFO", "propagate": False}},
        }

    @pytest.mark.parametrize("name", ["gunicorn.access", "wsgiserv.access"])
    def test_configured_handlers_get_the_lines(self, tmp_path: Path, errors: Path, name: str) -> None:
        target = tmp_path / "custom"
        log = opened(
            errors,
            accesslog=str(tmp_path / "access"),
            access_log_format='%(m)s %(s)s "%(a)s" %({host}i)s',
            logconfig_dict=self.dictionary(name, target),
        )
        note(log, 200)
        log.flush()
        log.reopen()
        log.close()
        assert target.read_text() == 'custom GET 200 "a\\x22b" -\n'
        assert not (tmp_path / "access").exists()

    def test_json(self, tmp_path: Path, errors: Path) -> None:
        target = tmp_path / "custom"
        config = self.dictionary("gunicorn.access", target)
        log = opened(errors, access_log_format="json", logconfig_dict=config)
        note(log, 200)
        assert json.loads(target.read_text().removeprefix("custom "))["user_agent"] == 'a"b'

    def test_an_own_json_format_stays_json_on_every_way(self, tmp_path: Path, errors: Path) -> None:
        template = '{"agent":"%(a)s","cut":"%(a).2s","status":%(s)s,"code":%(s)4d,"pid":"%(p)s"}'
        target, direct = tmp_path / "custom", tmp_path / "direct"
        through = opened(errors, template, logconfig_dict=self.dictionary("gunicorn.access", target))
        note(through, 200)
        through.log(ENVIRON, 502, (), 0, 1.0, True, 7)
        handlers = logging.getLogger("gunicorn.access").handlers
        while handlers:
            handlers.pop().close()
        log = opened(errors, template, accesslog=str(direct))
        note(log, 200)
        log.log(ENVIRON, 502, (), 0, 1.0, True, 7)
        log.close()
        for path in target, direct:
            lines = path.read_text().splitlines()
            for line, status in zip(lines, (200, 502), strict=True):
                fields = json.loads(line.removeprefix("custom "))
                assert (fields["agent"], fields["cut"]) == ('a"b', 'a"')
                assert fields["status"] == fields["code"] == status
            assert json.loads(lines[1].removeprefix("custom "))["pid"] == "<7>"

    def test_formatters_find_the_atoms_in_args(self, errors: Path) -> None:
        records: list[logging.LogRecord] = []

        class Collect(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                records.append(record)

        config = {
            "handlers": {"h": {"()": Collect}},
            "loggers": {"gunicorn.access": {"handlers": ["h"], "level": "INFO"}},
        }
        log = opened(errors, "combined", logconfig_dict=config)
        note(log, 201)
        args: Any = records[0].args
        assert (args["s"], args["m"], args["i"], args["{x}i"], args["U"]) == ("201", "GET", "id-1", "-", "/")

    def test_a_handler_that_raises_is_told_once(self, errors: Path) -> None:
        class Broken(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                raise RuntimeError("broken handler")

        config = {
            "handlers": {"h": {"()": Broken}},
            "loggers": {"gunicorn.access": {"handlers": ["h"], "level": "INFO"}},
        }
        log = opened(errors, logconfig_dict=config)
        note(log, 200, 200, 200)
        assert errors.read_text().count("raised: RuntimeError('broken handler')") == 1

    def test_a_dictionary_without_loggers_logs_to_standard_output(
        self, errors: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = opened(errors, logconfig_dict={"formatters": {"generic": {"format": "mine %(message)s"}}})
        note(log, 200)
        assert capsys.readouterr().out == "mine 200\n"

    def test_a_filter_on_gunicorns_logger(self, tmp_path: Path, errors: Path) -> None:
        def no_health_checks(record: logging.LogRecord) -> bool:
            args: Any = record.args
            return bool(args["U"] != "/health")

        logging.getLogger("gunicorn.access").addFilter(no_health_checks)
        path = tmp_path / "access"
        log = opened(errors, accesslog=str(path), access_log_format="%(U)s")
        log.log({**ENVIRON, "PATH_INFO": "/health"}, 200, [], 0, 0.0)
        log.log({**ENVIRON, "PATH_INFO": "/page"}, 200, [], 0, 0.0)
        assert path.read_text() == ""
        log.flush()
        assert path.read_text() == "/page\n"

    def test_what_the_application_logs_there(self, tmp_path: Path, errors: Path) -> None:
        path = tmp_path / "access"
        log = opened(errors, accesslog=str(path))
        log = opened(errors, accesslog=str(path))  # a reload does not double the lines
        logging.getLogger("gunicorn.access").info("by %s", "hand")
        log.flush()
        assert path.read_text() == "by hand\n"
