"""Whatever an application does with signals, its worker hears the server's, and no request is lost (issue 12, 3)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Server, Start, wait_until

WAYS = ["exits", "chain", "loop_keeps", "loop_gives_back", "run_loop", "defaults", "ignore", "fails"]
_FAILS = (r"\[ERROR\].*the application's handler of|Traceback",)


def begun(server: Server, target: str) -> RawClient:
    """Return a client whose request is in the application."""
    after = len(server.log.lines)
    client = RawClient(server.address)
    client.request(target)
    server.wait_for_log("^sleeping", after=after)
    return client


@pytest.fixture
def in_main_thread(worker_class: str) -> None:
    """Only where views run in the main thread can they set handlers."""
    if worker_class == "threads":
        pytest.skip("views run in other threads, where signal.signal() raises")


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@pytest.mark.parametrize("way", WAYS)
def test_set_at_import(start: Start, way: str, preload: bool, worker_class: str) -> None:
    if preload and worker_class != "sync" and way != "exits":
        pytest.skip("what a zygote's worker does with inherited handlers does not depend on the class")
    if worker_class == "threads" and way not in ("exits", "loop_keeps", "defaults", "fails"):
        pytest.skip("its main thread, too, is where sync's is when a signal comes")
    args = ("--preload",) if preload else ()
    server = start("signalapps:app", "-w", "1", *args, env={"SIGNALS_AT_IMPORT": way}, expect=_FAILS, bind="tcp")
    check_all_signals(server)


@pytest.mark.parametrize("way", WAYS)
def test_set_in_a_view(start: Start, way: str, in_main_thread: None) -> None:
    server = start("signalapps:app", "-w", "1", expect=_FAILS, bind="tcp")
    with RawClient(server.address) as client:
        assert client.get(f"/do?{way}").text == "done"
    check_all_signals(server)


def check_all_signals(server: Server) -> None:
    """A reload and a stop, each with a request in flight, and USR1."""
    client = begun(server, "/sleep?0.4")
    (first,) = server.workers() if len(server.workers()) == 1 else [max(server.workers())]
    server.send_signal(signal.SIGHUP)
    assert client.read_response().text == "done"
    client.close()
    wait_until(lambda: first not in server.workers(), "the worker has left")
    client = begun(server, "/sleep?0.4")
    assert server.stop() == 0
    assert client.read_response().text == "done"
    client.close()


@pytest.mark.parametrize("way", ["exits", "defaults", "run_loop", "fails"])
def test_set_by_the_very_request_that_is_in_flight(start: Start, way: str, in_main_thread: None) -> None:
    server = start("signalapps:app", "-w", "1", expect=_FAILS)
    client = begun(server, f"/do-and-sleep?{way}")
    assert server.stop() == 0
    assert client.read_response().text == "done"
    client.close()


def test_a_loop_that_waits_for_the_signal_and_the_worker_both_hear_it(start: Start, in_main_thread: None) -> None:
    server = start("signalapps:app", "-w", "1", "--graceful-timeout", "8")
    client = begun(server, "/wait-in-loop")
    assert server.stop() == 0
    assert client.read_response().text == "done"
    client.close()


@pytest.mark.parametrize("way", ["loop_keeps", "loop_gives_back", "defaults"])
def test_usr1_reopens_the_logs_all_the_same(start: Start, way: str) -> None:
    server = start("signalapps:app", "-w", "1", "--access-logfile", "access.log", env={"SIGNALS_AT_IMPORT": way})
    log: Path = server.directory / "access.log"
    with RawClient(server.address) as client:
        client.get("/do")
        wait_until(lambda: log.exists() and log.read_text(), "a line")
        log.rename(log.with_suffix(".1"))
        server.send_signal(signal.SIGUSR1)
        wait_until(log.exists, "the log is opened again by the worker or the master")

        def has_line() -> bool:
            client.get("/do")
            return bool(log.read_text())

        wait_until(has_line, "lines in the new file")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_fast_stop_is_fast_whatever_the_application_has_set(start: Start, number: int) -> None:
    server = start("signalapps:app", "-w", "1", env={"SIGNALS_AT_IMPORT": "ignore"})
    with RawClient(server.address) as client:
        assert client.get("/do").text == "done"
    assert server.stop(number, 8) == 0


def test_the_handler_of_the_application_is_called_at_the_signal(start: Start) -> None:
    server = start("signalapps:app", "-w", "1", env={"SIGNALS_AT_IMPORT": "exits"})
    with RawClient(server.address) as client:
        client.get("/do")
        (worker,) = server.workers()
        os.kill(worker, signal.SIGHUP)

        def heard() -> bool:
            return client.get("/heard").text == "SIGHUP"

        wait_until(heard, "the application has heard it, and lives on")
    assert server.workers() == [worker]


def test_a_timer_that_goes_off_after_its_request_costs_nobody(start: Start, in_main_thread: None) -> None:
    server = start("signalapps:app", "-w", "1", expect=_FAILS)
    with RawClient(server.address) as client, RawClient(server.address) as other:
        assert client.get("/alarm-late").text == "done"
        (worker,) = server.workers()
        assert "SIGALRM" in server.wait_for_log("the application's handler of .* raised TimeoutError.*")[0]
        assert other.get("/do").text == "done"
        assert client.get("/do").text == "done"
    assert server.workers() == [worker]


def test_a_timer_without_a_handler_is_told_as_the_applications(start: Start) -> None:
    """Its default is death: nobody but the application has set it."""
    server = start("signalapps:app", "-w", "1", expect=(r"\[ERROR\]|\[WARNING\]|\[CRITICAL\]",))
    with RawClient(server.address) as client:
        assert client.get("/alarm-default").text == "done"
    server.wait_for_log("a timer of the application .*SIGALRM had no handler")
    with RawClient(server.address) as client:
        assert client.get("/do").text == "done"


def test_a_timer_interrupts_its_own_request(start: Start, worker_class: str) -> None:
    if worker_class != "sync":
        pytest.skip("only there does the handler run in the code that waits for it")
    server = start("signalapps:app", "-w", "1")
    with RawClient(server.address) as client:
        for _ in range(2):
            assert client.get("/alarm").text == "timed out"
