"""What a crash report says: the cause, memory, stacks, the lost requests."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsgiserv.boot import Report
from wsgiserv.logs.access import environ_of
from wsgiserv.logs.shared import ACCESS, begin_access_loggers
from wsgiserv.master.crash_dump_file import CrashDump, CrashDumpFile
from wsgiserv.master.crash_report import CrashReport, CrashReporter, describe_exit, make_report, needs_report
from wsgiserv.master.oom import OomEvidence, OomWatch
from wsgiserv.master.slots import SlotPool
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.process import Ended
from wsgiserv.scoreboard import CONNECTIONS, ERRORS, REQUESTS, RequestInFlight
from wsgiserv.worker.crash_dump import write_report

NOW = 100.0
KILL, SEGV, ABRT, TERM, SYS = 9, 11, 6, 15, 31
CORE = 0x80


def exited(status: int) -> int:
    return status << 8


def worker(**rest: Any) -> WorkerHandle:
    rest = {"ready_at": 11.0, **rest}
    found = WorkerHandle(age=3, generation=2, spawned_at=10.0, timeout=30.0, graceful_timeout=20.0, pid=77, **rest)
    found.slot = SlotPool(cells=30, slots=1).take()
    return found


# ---- which exits get one --------------------------------------------------------------------------------------


def test_which_exits_get_a_report() -> None:
    """(the worker, its wait status, whether it was unasked) -> whether it gets one."""
    failed = Report("failed", "the import fails", "", 4)
    cases: list[tuple[WorkerHandle, int | None, bool, bool]] = [
        (worker(), KILL, True, True),
        (worker(), exited(7), True, True),
        (worker(), exited(0), True, True),
        (worker(), None, True, True),
        (worker(abort_at=99.0), exited(1), False, True),
        (worker(abort_at=98.0, kill_at=99.0), KILL, False, True),
        (worker(term_at=50.0, kill_at=99.0), KILL, False, True),
        (worker(ready_at=None, abort_at=99.0), ABRT, True, True),
        # Told to leave, and does.
        (worker(term_at=50.0), exited(0), False, False),
        (worker(term_at=50.0), TERM, False, False),
        (worker(quit_at=50.0), exited(0), False, False),
        (worker(term_at=50.0, quit_at=51.0, kill_at=52.0), KILL, False, False),
        (worker(retiring_at=50.0), exited(0), False, False),
        (worker(failed=failed), exited(4), False, False),
        (worker(), exited(0), False, False),
        # Told to leave, but this was not meant.
        (worker(term_at=50.0), SEGV, False, True),
        (worker(term_at=50.0), KILL, False, True),
        (worker(retiring_at=50.0), exited(3), False, True),
    ]
    for number, (handle, status, unasked, expected) in enumerate(cases):
        assert needs_report(handle, status, unasked) is expected, number


# ---- whose doing, and why ------------------------------------------------------------------------------

SILENT = "has not responded for 30 s (timeout)"
LATE = "did not retire within graceful_timeout (20 s)"
OUTSIDE = "SIGKILL from outside (kill -9?): not sent by wsgiserv, and the OOM counter has not moved (/x)"
DUMP = "Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n  File ..."


def _answer(evidence: OomEvidence) -> OomEvidence:
    return evidence


def test_causes() -> None:
    """(the worker, its wait status, its dump, the OOM killer) -> cause, words of the reason."""
    cases: list[tuple[WorkerHandle, int | None, CrashDump, OomEvidence, str, str]] = [
        (
            *(worker(abort_at=98.0, kill_at=99.1, sent_because=SILENT), KILL, CrashDump(), OomEvidence("cgroup")),
            *("server", f"sent by wsgiserv: it {SILENT}; it did not end within 1.1 s of SIGABRT"),
        ),
        (
            *(worker(abort_at=98.0, sent_because=SILENT), exited(1), CrashDump("r"), OomEvidence("none")),
            *("server", f"sent by wsgiserv: it {SILENT}; it ended at SIGABRT"),
        ),
        (
            *(worker(abort_at=98.0, sent_because=SILENT), ABRT, CrashDump(), OomEvidence("none")),
            *("server", f"sent by wsgiserv: it {SILENT}"),
        ),
        (
            *(worker(term_at=70.0, kill_at=99.0, sent_because=LATE), KILL, CrashDump(), OomEvidence("none")),
            *("server", f"sent by wsgiserv: it {LATE}"),
        ),
        (worker(), KILL, CrashDump(), OomEvidence("cgroup", "/x/memory.events"), "out of memory", "/x/memory.events"),
        (worker(), KILL, CrashDump(), OomEvidence("machine", "/v"), "out of memory", "probably"),
        (
            worker(),
            KILL,
            CrashDump(),
            OomEvidence("none", "/x"),
            "outside",
            "SIGKILL from outside (kill -9?): not sent by wsgiserv, and the OOM counter has not moved (/x)",
        ),
        (worker(), KILL, CrashDump(), OomEvidence("unknown"), "outside", "see dmesg"),
        (worker(), SEGV | CORE, CrashDump("", DUMP), OomEvidence("none"), "crash", "a crash in C code"),
        (worker(), SEGV, CrashDump(), OomEvidence("none"), "crash", "no stack is left"),
        (worker(), ABRT, CrashDump(), OomEvidence("none"), "crash", "abort() in C code"),
        (worker(), SYS, CrashDump(), OomEvidence("none"), "crash", "seccomp"),
        # What crashed while it was being aborted has crashed.
        (worker(abort_at=98.0, sent_because=SILENT), SEGV, CrashDump(), OomEvidence("none"), "crash", "C code"),
        (worker(), TERM, CrashDump(), OomEvidence("none"), "outside", "SIGTERM from outside"),
        (worker(), exited(7), CrashDump(), OomEvidence("none"), "application", "os._exit(7)"),
        (worker(), exited(0), CrashDump(), OomEvidence("none"), "outside", "os._exit(0)"),
        (worker(), exited(1), CrashDump("in flight"), OomEvidence("none"), "outside", "SIGABRT from outside"),
        (worker(retiring_at=9.0), exited(3), CrashDump(), OomEvidence("none"), "server", "request_timeout"),
        (worker(), None, CrashDump(), OomEvidence("none"), "unknown", "has waited for it"),
    ]
    for handle, status, stacks, evidence, cause, words in cases:
        found = make_report(handle, Ended(status), NOW, 1.0, dump=stacks, find_oom=partial(_answer, evidence))
        assert (found.cause, words in found.reason) == (cause, True), found


def test_the_oom_killer_is_asked_about_foreign_kills_only() -> None:
    def never() -> OomEvidence:
        raise AssertionError("asked")

    make_report(worker(kill_at=99.0), Ended(KILL), NOW, 1.0, find_oom=never)
    make_report(worker(), Ended(SEGV), NOW, 1.0, find_oom=never)
    make_report(worker(), Ended(exited(7)), NOW, 1.0, find_oom=never)


# ---- what it looks like --------------------------------------------------------------------------------


def crashed() -> CrashReport:
    handle = worker(rss_bytes=80 << 20, measured_at=99.5)
    assert handle.slot is not None
    for word, value in ((REQUESTS, 345), (ERRORS, 2), (CONNECTIONS, 7)):
        handle.slot.words[word] = value
    handle.slot.begin(1, 99.0, b"", b"", b"GET /b HTTP/1.1")
    handle.slot.begin(0, 97.7, b"192.0.2.7", b"r1", b"GET /a\x1b[2J\nX HTTP/1.1")
    return make_report(handle, Ended(SEGV | CORE, 100 << 10), NOW, 1_767_225_600.5, dump=CrashDump("", DUMP))


def test_the_text_is_one_record_with_all_there_is_to_know() -> None:
    assert crashed().text().splitlines() == [
        "worker 77 (age 3) was killed by SIGSEGV after 90.0 s and 345 requests (2 with 5xx)",
        "    cause: a crash in C code: usually of an extension module, or of what it was given",
        "    memory: 80.0 MiB resident 0.5 s before its exit, 100.0 MiB at its most",
        "    connections: 7 when it counted them last",
        '    in flight in worker 77 for 2.3 s: "GET /a\\x1b[2J\\x0aX HTTP/1.1" from 192.0.2.7, request id r1',
        '    in flight in worker 77 for 1.0 s: "GET /b HTTP/1.1" from a Unix socket, request id -',
        "    stacks, by faulthandler, innermost call first:",
        "        Fatal Python error: Segmentation fault",
        "        Current thread 0x1 (most recent call first):",
        "          File ...",
    ]


def test_what_is_not_known_is_not_there() -> None:
    handle = worker(ready_at=None)
    text = make_report(handle, Ended(exited(7)), NOW, 1.0).text()
    assert text.splitlines()[0].endswith("exited with status 7 after 90.0 s and 0 requests, while it was booting")
    assert "memory" not in text
    assert "connections" not in text
    assert "stacks" not in text
    assert "in flight: nothing" in text
    handle.slot = None
    assert (
        make_report(handle, Ended(None), NOW, 1.0).text().startswith("worker 77 (age 3) exited with an unknown status")
    )
    assert describe_exit(None) == "exited with an unknown status"


def test_long_lists_are_cut_in_the_text_and_whole_for_programs() -> None:
    handle = worker()
    assert handle.slot is not None
    for cell in range(30):
        handle.slot.begin(cell, 90.0, b"p", b"i", b"GET / HTTP/1.1")
    found = make_report(handle, Ended(KILL), NOW, 1.0, dump=CrashDump("x\n" * 1000))
    assert "in flight in worker 77: 10 more" in found.text()
    assert "600 more lines" in found.text()
    assert len(found.to_dict()["in_flight"]) == 30


def test_a_program_gets_json() -> None:
    found = json.loads(json.dumps(crashed().to_dict()))
    on_http = {"detached": False}
    assert found.pop("stacks") == DUMP
    assert found.pop("reason").startswith("a crash in C code")
    assert found == {
        "pid": 77,
        "age": 3,
        "generation": 2,
        "died": "2026-01-01T00:00:00.500+00:00",
        "lived_s": 90.0,
        "was_ready": True,
        "requests": 345,
        "errors": 2,
        "connections": 7,
        "exit_status": None,
        "signal": "SIGSEGV",
        "cause": "crash",
        "rss_bytes": 80 << 20,
        "rss_age_s": 0.5,
        "max_rss_bytes": 100 << 20,
        "in_flight": [
            {"request_line": "GET /a\x1b[2J\nX HTTP/1.1", "peer": "192.0.2.7", "id": "r1", "age_s": 2.3} | on_http,
            {"request_line": "GET /b HTTP/1.1", "peer": "", "id": "", "age_s": 1.0} | on_http,
        ],
        "stacks_by": "faulthandler",
    }
    bare = make_report(worker(), Ended(exited(7)), NOW, 1.0).to_dict()
    assert (bare["exit_status"], bare["signal"], bare["rss_bytes"], bare["max_rss_bytes"]) == (7, None, None, None)


# ---- the crash dump ----------------------------------------------------------------------------------------


@pytest.fixture
def dump_file() -> Iterator[CrashDumpFile]:
    """A worker's file."""
    found = CrashDumpFile.make()
    assert found is not None
    yield found
    found.close()


ABORTED = (
    b"Fatal Python error: Aborted\n\nThread 0x2 (most recent call first):\n"
    b'  File "/app.py", line 7 in hang\n  File "/x/wsgiserv/wsgi/run.py", line 424 in run_app\n'
    b'  File "/x/wsgiserv/net/connection.py", line 424 in run\n'
    b"\nExtension modules: greenlet._greenlet, gevent.libev.corecext (total: 2)\n"
)


def test_the_dumps_of_the_interpreter_and_of_the_worker(dump_file: CrashDumpFile) -> None:
    assert dump_file.read() == ("", "")
    os.write(dump_file.fd, DUMP.encode())  # from a child that crashed long ago
    os.write(dump_file.fd, ABORTED)
    read = dump_file.read()
    assert read.report == ""
    # The frames of the server, and the modules, tell nobody anything.
    assert read.faulthandler.splitlines() == [
        "Fatal Python error: Aborted",
        "",
        "Thread 0x2 (most recent call first):",
        '  File "/app.py", line 7 in hang',
    ]
    assert read.at(ABRT) == read.faulthandler
    assert read.at(SEGV) == ""
    assert read.at(KILL) == ""
    assert write_report(dump_file.fd, "in flight: all\nof them \ud800")
    assert dump_file.read() == ("in flight: all\nof them \\ud800", read.faulthandler)


def test_the_better_dump_is_shown(dump_file: CrashDumpFile) -> None:
    silent = worker(abort_at=98.0, kill_at=99.0, sent_because=SILENT)
    os.write(dump_file.fd, ABORTED)
    found = make_report(silent, Ended(KILL), NOW, 1.0, dump=dump_file.read())
    assert (found.stacks_by, "in hang" in found.stacks) == ("faulthandler", True)
    write_report(dump_file.fd, "in flight: GET /slow")
    found = make_report(silent, Ended(KILL), NOW, 1.0, dump=dump_file.read())
    assert (found.stacks_by, found.stacks) == ("worker", "in flight: GET /slow")
    # A dump that was made at another signal says nothing about this death.
    found = make_report(worker(), Ended(SEGV), NOW, 1.0, dump=CrashDump("", "Fatal Python error: Aborted\nold"))
    assert (found.stacks_by, found.stacks) == ("", "")


def test_dumps_are_bounded_and_never_raise(dump_file: CrashDumpFile) -> None:
    assert not write_report(dump_file.fd, "x" * (1 << 20)) or len(dump_file.read().report) < 1 << 18
    assert not write_report(None, "x")
    gone = CrashDumpFile(os.dup(dump_file.fd))
    gone.close()
    assert gone.read() == ("", "")
    assert not write_report(gone.fd, "x")


# ---- the OOM killer ------------------------------------------------------------------------------------


@pytest.fixture
def count_kills(tmp_path: Path) -> Callable[[str, int], None]:
    """Write a counter: its path below the test's directory, and its value."""

    def write(path: str, count: int) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"low 0\noom 9\noom_kill {count}\noom_group_kill 0\n")

    return write


@pytest.mark.parametrize(
    ("own", "path"),
    [
        ("0::/app.slice/web", "app.slice/web/memory.events"),
        ("0::/", "memory.events"),
        ("0::/not/mounted/here", "memory.events"),
        ("4:memory:/docker/1\n0::/", "memory/docker/1/memory.oom_control"),
        ("4:cpu,memory:/d\n", "cpu,memory/d/memory.oom_control"),
    ],
)
def test_a_growing_counter_of_the_cgroup_is_the_oom_killer(own: str, path: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)

    def count(kills: int) -> None:
        file.write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")

    count(3)
    watch = OomWatch(str(tmp_path), own, str(tmp_path / "none"))
    assert watch.attribute_kill(NOW) == ("none", str(file))
    count(4)
    assert watch.attribute_kill(NOW + 1) == ("cgroup", str(file))
    assert watch.attribute_kill(NOW + 1).source == "none"  # one kill explains one death
    count(6)
    assert [watch.attribute_kill(NOW + 2).source for _ in range(3)] == ["cgroup", "cgroup", "none"]
    file.unlink()


def test_a_kill_long_ago_explains_nothing(tmp_path: Path, count_kills: Callable[[str, int], None]) -> None:
    count_kills("memory.events", 0)
    watch = OomWatch(str(tmp_path), "0::/", str(tmp_path / "none"))
    count_kills("memory.events", 1)
    watch.look(NOW)  # a process of the application's own, say
    assert watch.attribute_kill(NOW + 60).source == "none"


def test_the_killer_is_suspected_where_a_counter_has_grown_or_there_is_none(
    tmp_path: Path, count_kills: Callable[[str, int], None]
) -> None:
    count_kills("memory.events", 0)
    watch = OomWatch(str(tmp_path), "0::/", str(tmp_path / "none"))
    assert not watch.suspects(NOW)
    count_kills("memory.events", 1)
    assert watch.suspects(NOW)
    assert watch.attribute_kill(NOW).source == "cgroup"  # to be suspected is not yet to be blamed
    assert not watch.suspects(NOW)
    assert OomWatch(str(tmp_path / "empty"), "", str(tmp_path / "none")).suspects(NOW)


def test_the_machines_counter_is_the_weaker_hint(tmp_path: Path, count_kills: Callable[[str, int], None]) -> None:
    count_kills("vmstat", 0)
    watch = OomWatch(str(tmp_path / "empty"), "", str(tmp_path / "vmstat"))
    assert watch.attribute_kill(NOW).source == "none"
    count_kills("vmstat", 1)
    assert watch.attribute_kill(NOW) == ("machine", str(tmp_path / "vmstat"))
    nothing = OomWatch(str(tmp_path / "empty"), "", str(tmp_path / "missing"))
    assert nothing.attribute_kill(NOW) == ("unknown", "")
    # The cgroup's word counts more than the machine's.
    count_kills("memory.events", 0)
    both = OomWatch(str(tmp_path), "0::/", str(tmp_path / "vmstat"))
    count_kills("memory.events", 1)
    count_kills("vmstat", 2)
    assert both.attribute_kill(NOW).source == "cgroup"
    assert both.attribute_kill(NOW).source == "none"


# ---- the reporter ---------------------------------------------------------------------------------------


def settings(path: Path | str | None, log_format: str = "%(h)s %(r)s %(s)s %(b)s %(L)s %(p)s %(i)s %(a)s") -> Any:
    return SimpleNamespace(
        accesslog=None if path is None else str(path),
        access_log_format=log_format,
        user=os.geteuid(),
        group=os.getegid(),
        umask=0,
        logconfig=None,
        logconfig_dict={},
        logconfig_json=None,
        syslog=False,
    )


@pytest.fixture
def reporter(tmp_path: Path) -> CrashReporter:
    log = logging.getLogger("test_death")
    # Whatever an earlier test has left there.
    ACCESS.filters.clear()
    ACCESS.propagate = ACCESS.given_propagate = False
    begin_access_loggers(is_on=True)
    return CrashReporter(log, OomWatch(str(tmp_path), "", str(tmp_path / "none")), lambda pid: pid << 20)


def dead(cfg: Any, **rest: Any) -> WorkerHandle:
    found = worker(settings=cfg, **rest)
    assert found.slot is not None
    found.slot.begin(0, 98.5, b"192.0.2.7", b"r1", b"GET /a%20b?x=1 HTTP/1.1")
    return found


def test_memory_is_looked_at_once_a_second(reporter: CrashReporter) -> None:
    handle = worker()
    reporter.look([handle], NOW)
    assert (handle.rss_bytes, handle.measured_at) == (77 << 20, NOW)
    reporter.look([handle], NOW + 0.5)
    assert handle.measured_at == NOW
    reporter.look([handle], NOW + 1.0)
    assert handle.measured_at == NOW + 1.0


def test_the_last_twenty_are_kept_and_all_are_logged(reporter: CrashReporter, caplog: pytest.LogCaptureFixture) -> None:
    for pid in range(25):
        handle = worker(settings=settings(None))
        handle.pid = pid
        reporter.report(handle, Ended(KILL, 1024), NOW)
    assert [each.pid for each in reporter.reports] == list(range(5, 25))
    assert reporter.reports[0].max_rss_bytes in (1 << 20, 1024)  # KiB, bytes on macOS
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 25


def test_lost_requests_are_in_the_access_log(reporter: CrashReporter, tmp_path: Path) -> None:
    """000 when the worker has died, 504 when it was killed for being late; in the dead worker's name."""
    path = tmp_path / "access.log"
    reporter.report(dead(settings(path)), Ended(KILL, 0), NOW)
    reporter.report(dead(settings(path), abort_at=99.0, sent_because=SILENT), Ended(exited(1), 0), NOW)
    late = dead(settings(path), term_at=70.0, kill_at=99.0, sent_because=LATE)
    reporter.report(late, Ended(KILL, 0), NOW)
    reporter.report(dead(settings(path), abort_at=99.0, sent_because=SILENT), Ended(SEGV, 0), NOW)
    line = "192.0.2.7 GET /a%20b?x=1 HTTP/1.1 {} 0 1.500000 <77> r1 -"
    assert path.read_text().splitlines() == [line.format(each) for each in ("000", "504", "504", "000")]
    reporter.report(dead(settings(path, "json")), Ended(KILL, 0), NOW)
    reporter.report(dead(settings(path, "%(s)d")), Ended(KILL, 0), NOW)
    *_, as_json, as_number = path.read_text().splitlines()
    found = json.loads(as_json)
    assert found.pop("time")
    assert found == {
        "remote_addr": "192.0.2.7",
        "user": None,
        "request_id": "r1",
        "method": "GET",
        "path": "/a b",
        "query": "x=1",
        "protocol": "HTTP/1.1",
        "host": None,
        "referer": None,
        "user_agent": None,
        "status": 0,
        "bytes": 0,
        "duration_s": 1.5,
        "aborted": True,
        "pid": 77,
    }
    assert as_number == "0"


def test_the_loggers_are_left_as_they_were(reporter: CrashReporter, tmp_path: Path) -> None:
    """A filter that people have put on the access log is asked; nothing of ours stays on the logger."""
    logger = logging.getLogger("gunicorn.access")
    seen: list[str] = []

    def no_health_checks(record: logging.LogRecord) -> bool:
        assert isinstance(record.args, dict)
        seen.append(record.args["U"])
        return False

    before = (logger.handlers[:], logger.level, logger.propagate)
    descriptors = os.listdir("/proc/self/fd")
    logger.addFilter(no_health_checks)
    try:
        reporter.report(dead(settings(tmp_path / "access.log")), Ended(KILL, 0), NOW)
    finally:
        logger.removeFilter(no_health_checks)
    assert seen == ["/a b"]
    assert (tmp_path / "access.log").read_text() == ""
    assert (logger.handlers, logger.level, logger.propagate) == before
    assert os.listdir("/proc/self/fd") == descriptors


def test_without_an_access_log_or_with_one_that_cannot_be_written_nothing_breaks(
    reporter: CrashReporter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reporter.report(dead(settings(None)), Ended(KILL, 0), NOW)
    os.mkfifo(tmp_path / "fifo")  # to open it would wait for a reader
    reporter.report(dead(settings(tmp_path / "fifo")), Ended(KILL, 0), NOW)
    assert {record.levelname for record in caplog.records if record.name == "test_death"} == {"ERROR"}
    reporter.report(dead(settings(tmp_path / "missing" / "access.log")), Ended(KILL, 0), NOW)
    assert caplog.records[-1].levelname == "WARNING"
    assert "mkdir" in caplog.records[-1].getMessage()
    assert len(reporter.reports) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_root_opens_the_access_log_as_its_workers_would(
    reporter: CrashReporter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a worker's symbolic link would have root write, and give away, any file."""
    cfg = settings(tmp_path / "logs" / "access.log")
    cfg.user = cfg.group = 65534
    (tmp_path / "logs").mkdir()
    os.chown(tmp_path / "logs", 65534, 65534)
    for directory in [tmp_path, *list(tmp_path.parents)[:3]]:
        directory.chmod(directory.stat().st_mode | stat.S_IXOTH | stat.S_IXGRP)
    (tmp_path / "secret").write_text("")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "logs" / "access.log").symlink_to(tmp_path / "secret")
    reporter.report(dead(cfg), Ended(KILL, 0), NOW)
    assert (tmp_path / "secret").read_text() == ""
    assert (tmp_path / "secret").stat().st_uid == 0
    assert "are not in the access log" in caplog.text
    (tmp_path / "logs" / "access.log").unlink()
    reporter.report(dead(cfg), Ended(KILL, 0), NOW)
    assert (tmp_path / "logs" / "access.log").stat().st_uid == 65534
    assert (os.geteuid(), os.getegid()) == (0, 0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("GET /a?b HTTP/1.1", {"PATH_INFO": "/a", "QUERY_STRING": "b", "SERVER_PROTOCOL": "HTTP/1.1"}),
        ("GET /cut" + "x" * 400, {"PATH_INFO": "/cut" + "x" * 400, "RAW_URI": "/cut" + "x" * 400}),
        ("GET /cut HT", {"REQUEST_METHOD": "GET"}),
        ("", {"REQUEST_METHOD": "", "PATH_INFO": ""}),
    ],
)
def test_what_a_request_line_tells(line: str, expected: dict[str, str]) -> None:
    environ = environ_of(RequestInFlight(line, "192.0.2.7", "r1", 1.0))
    assert environ.items() >= {**expected, "REMOTE_ADDR": "192.0.2.7", "wsgiserv.request_id": "r1"}.items()
    assert ("SERVER_PROTOCOL" in environ) == line.endswith("HTTP/1.1")
