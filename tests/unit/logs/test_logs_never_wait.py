"""What a log does when nothing takes its lines: it does not wait, loses little, tears no line, and tells."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import pty
import resource
import shutil
import socket
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgiserv.logs.access import AccessLog
from wsgiserv.logs.output import PATIENCE_S, LossyWriter, Output, Owner
from wsgiserv.process import flush_standard_streams, is_writable, release_standard_streams, reopened

NOBODY = Owner(0, 0)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of one page."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(fd)


@contextlib.contextmanager
def as_stream(number: int, fd: int) -> Iterator[None]:
    """Let ``fd`` be descriptor 1 or 2."""
    saved = os.dup(number)
    os.dup2(fd, number)
    try:
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)


def writer_to(output: Output) -> LossyWriter:
    return LossyWriter(output, lambda count: b"%d lost\n" % count)


class TestStandardStream:
    def test_a_full_pipe_is_not_waited_for_and_its_flags_stay(self, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        with as_stream(2, writer):
            output = Output("-", 2, NOBODY)
            assert output.write(b"a\n" * 2000) == (4000, None)
            done, error = output.write(b"b\n" * 500)
            assert done == 0
            assert error is not None
            assert error.errno == errno.EAGAIN
            assert os.get_blocking(2)
            assert os.get_blocking(writer)
            os.read(reader, 65536)
            assert output.write(b"c\n") == (2, None)
            output.close()
            os.fstat(2)

    def test_where_a_pipe_cannot_be_opened_again_it_is_polled(
        self, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsgiserv.logs.output.reopened", lambda fd, access=0: None)
        reader, writer = pipe
        with as_stream(2, writer):
            output = Output("-", 2, NOBODY)
            assert output.write(b"a\n" * 2000) == (4000, None)
            done, error = output.write(b"b\n" * 500)
            assert (done, getattr(error, "errno", 0)) == (0, errno.EAGAIN)
            os.read(reader, 65536)
            assert output.write(b"c\n") == (2, None)
            output.close()

    def test_a_socket(self) -> None:
        """As systemd gives it."""
        ours, theirs = socket.socketpair()
        with ours, theirs, as_stream(2, ours.fileno()):
            output = Output("-", 2, NOBODY)
            for _ in range(10_000):
                done, error = output.write(b"x" * 100 + b"\n")
                if error is not None:
                    break
            assert (done, getattr(error, "errno", 0)) == (0, errno.EAGAIN)
            assert theirs.recv(1 << 20).count(b"\n") > 100
            output.close()

    def test_a_stopped_terminal(self) -> None:
        master, slave = pty.openpty()
        try:
            with as_stream(2, slave):
                output = Output("-", 2, NOBODY)
                termios.tcflow(slave, termios.TCOOFF)
                done, error = output.write(b"a\n")
                assert (done, getattr(error, "errno", 0)) == (0, errno.EAGAIN)
                termios.tcflow(slave, termios.TCOON)
                assert output.write(b"b\n") == (2, None)
                assert os.read(master, 100) == b"b\r\n"
                assert os.get_blocking(slave)
                output.close()
        finally:
            os.close(master)
            os.close(slave)

    def test_a_closed_descriptor_that_has_become_anothers(self, pipe: tuple[int, int]) -> None:
        """The application closes descriptor 2, and the next client gets that number."""
        reader, writer = pipe
        other, others = os.pipe()
        try:
            with as_stream(2, writer):
                output = Output("-", 2, NOBODY)
                assert output.fd > 2
                os.dup2(others, 2)
                output.write(b"to the log\n")
                assert os.read(reader, 100) == b"to the log\n"
                assert not os.get_inheritable(output.fd)
                output.close()
            os.close(others)
            assert os.read(other, 100) == b""
        finally:
            os.close(other)


class TestFifo:
    def test_nobody_reads_it_then_somebody_does(self, tmp_path: Path) -> None:
        path = tmp_path / "fifo"
        os.mkfifo(path)
        output = Output(str(path), 2, NOBODY)
        assert output.write(b"one\n") == (4, None)
        for line in (b"one\n", b"two\n"):
            reader = os.open(path, os.O_RDONLY)
            assert os.read(reader, 100) == line
            os.close(reader)
            output.write(b"two\n")
        output.reopen()
        assert output.write(b"three\n") == (6, None)
        output.close()

    def test_one_that_may_not_be_read_waits_for_its_reader(self) -> None:
        directory = tempfile.mkdtemp()
        os.chmod(directory, 0o755)
        path = os.path.join(directory, "fifo")
        os.mkfifo(path)
        os.chmod(path, 0o222)
        user = os.geteuid()
        output = None
        try:
            if user == 0:
                os.seteuid(65534)
            output = Output(path, 2, NOBODY)
            fd = output.fd
            done, error = output.write(b"lost\n")
            assert (done, getattr(error, "errno", 0)) == (0, errno.ENXIO)
            os.seteuid(user)
            os.chmod(path, 0o622)
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            if user == 0:
                os.seteuid(65534)
            assert output.write(b"seen\n") == (5, None)
            assert output.fd == fd
            assert os.read(reader, 100) == b"seen\n"
            os.close(reader)
        finally:
            os.seteuid(user)
            if output is not None:
                output.close()
            shutil.rmtree(directory)

    def test_a_socket_is_none(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(tmp_path / "socket"))
            with pytest.raises(OSError, match="No such device"):
                Output(str(tmp_path / "socket"), 2, NOBODY)

    def test_standard_output_by_its_path_may_be_a_socket(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, as_stream(1, ours.fileno()):
            output = Output("/dev/stdout", 1, NOBODY)
            assert output.write(b"line\n") == (5, None)
            assert theirs.recv(100) == b"line\n"
            output.close()


class TestLossyWriter:
    def test_lost_lines_are_counted_and_told(self, pipe: tuple[int, int]) -> None:
        reader, fd = pipe
        with as_stream(2, fd):
            writer = writer_to(Output("-", 2, NOBODY))
            writer.write(b"x" * 4095 + b"\n")
            for _ in range(3):
                writer.write(b"y" * 200 + b"\n")
            assert os.read(reader, 65536) == b"x" * 4095 + b"\n"
            assert writer.recover()
            assert os.read(reader, 65536) == b"3 lost\n"
            writer.write(b"z\n")
            assert os.read(reader, 65536) == b"z\n"
            assert writer.lost == 3
            writer.output.close()

    def test_a_sleeping_reader_is_waited_for_once(self, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        waits: list[float] = []

        def waiting(fd: int, timeout_s: float = 0.0) -> bool:
            waits.append(timeout_s)
            return is_writable(fd, timeout_s)

        monkeypatch.setattr("wsgiserv.logs.output.is_writable", waiting)
        with as_stream(2, pipe[1]):
            writer = writer_to(Output("-", 2, NOBODY))
            writer.write(b"x" * 4095 + b"\n")
            for _ in range(1000):
                writer.write(b"y" * 200 + b"\n")
            # Once more for each second that the machine has needed.
            assert 1 <= len([wait_s for wait_s in waits if wait_s]) < 10
            assert writer.lost == 1000
            writer.output.close()

    def test_a_reader_that_is_only_behind_loses_nothing(self, pipe: tuple[int, int]) -> None:
        reader, fd = pipe
        got: list[bytes] = []

        def read() -> None:
            time.sleep(PATIENCE_S / 5)
            while len(b"".join(got)) < 4201:
                got.append(os.read(reader, 65536))

        with as_stream(2, fd):
            writer = writer_to(Output("-", 2, NOBODY))
            writer.write(b"x" * 3999 + b"\n")
            thread = threading.Thread(target=read)
            thread.start()
            writer.write(b"y" * 200 + b"\n")
            thread.join(10)
            assert not writer.lost
            writer.output.close()

    def test_a_torn_line_is_finished_first(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        writer = writer_to(Output(str(path), 2, NOBODY))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        writer.write(b"first\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        try:
            writer.write(b"second line\n")
            writer.write(b"third line\n")
            assert path.read_bytes() == b"first\nseco"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        writer._retry_at = 0.0
        writer.write(b"fourth\n")
        assert path.read_bytes() == b"first\nsecond line\n1 lost\nfourth\n"
        writer.output.close()

    def test_a_new_file_does_not_begin_with_the_end_of_a_line(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        writer = writer_to(Output(str(path), 2, NOBODY))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
        try:
            writer.write(b"torn line\n")
            path.rename(tmp_path / "log.1")
            writer.reopen()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        writer.write(b"whole\n")
        assert path.read_bytes() == b"1 lost\nwhole\n"
        writer.output.close()

    def test_a_child_does_not_tell_its_parents_losses(self, pipe: tuple[int, int]) -> None:
        reader, fd = pipe
        with as_stream(2, fd):
            writer = writer_to(Output("-", 2, NOBODY))
            writer.write(b"x" * 4000 + b"\n")
            writer.write(b"y" * 200 + b"\n")
            os.read(reader, 65536)
            pid = os.fork()
            if pid == 0:
                writer.write(b"child\n")
                os._exit(writer.lost)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert os.read(reader, 65536) == b"child\n"
            assert writer.lost == 1
            writer.output.close()


class TestAccessLog:
    def test_a_new_file_does_not_begin_with_the_end_of_a_line(self, tmp_path: Path) -> None:
        path = tmp_path / "access"
        log = AccessLog(Output(str(path), 1, NOBODY), "%(s)s", logging.getLogger("nowhere"))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5, before[1]))
        try:
            for line in ("one", "two", "three"):
                log.append(line)
            log.flush()
            assert path.read_text() == "one\nt"
            path.rename(tmp_path / "access.1")
            log.reopen()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        log.append("four")
        log.flush()
        assert path.read_text() == "three\nfour\n"
        assert log.lost == 1
        log.close()

    def test_the_end_waits_for_a_bounded_time(self, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
        with as_stream(1, pipe[1]):
            log = AccessLog(Output("-", 1, NOBODY), "%(s)s", logging.getLogger("nowhere"))
            for _ in range(200):
                log.append("x" * 1000)
            began = time.monotonic()
            log.close()
            assert time.monotonic() - began < 5
        assert log.lost > 190
        assert f"{log.lost} lines are lost" in caplog.text

    def test_a_flush_that_a_signal_has_interrupted_is_not_waited_for_forever(self, tmp_path: Path) -> None:
        log = AccessLog(Output(str(tmp_path / "a"), 1, NOBODY), "%(s)s", logging.getLogger("nowhere"))
        with log._lock:
            log.append("line")
            log.flush()
        log.close()
        assert (tmp_path / "a").read_text() == "line\n"


class TestFlushing:
    @pytest.mark.parametrize("end", [flush_standard_streams, release_standard_streams])
    def test_a_full_pipe_holds_up_no_fork_and_no_end(self, end: object) -> None:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                import sys

                os.dup2(writer, 1)
                sys.stdout = os.fdopen(1, "w", buffering=8192)
                os.set_blocking(writer, False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        os.write(writer, b"x" * 4096)
                os.set_blocking(writer, True)
                sys.stdout.write("buffered")
                end()  # type: ignore[operator]
                status = 0
            finally:
                os._exit(status)
        try:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        finally:
            os.close(reader)
            os.close(writer)

    def test_regular_files_are_not_opened_again(self, tmp_path: Path) -> None:
        with open(tmp_path / "file", "w") as file:
            assert reopened(file.fileno()) is None


def test_the_first_loss_in_a_child_is_told(pipe: tuple[int, int]) -> None:
    """The writer is older than the child, as an error log is older than its workers."""
    reader, fd = pipe
    with as_stream(2, fd):
        writer = writer_to(Output("-", 2, NOBODY))
        writer.write(b"x" * 4095 + b"\n")
        ready, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            writer.write(b"lost\n")
            os.write(go, b".")
            while not writer.recover():
                time.sleep(0.01)
            os._exit(0)
        os.read(ready, 1)
        os.read(reader, 65536)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert os.read(reader, 65536) == b"1 lost\n"
        writer.output.close()
        os.close(ready)
        os.close(go)
