"""What the master keeps and sends of its hooks' wishes."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import pytest

from wsgiserv.config.settings import Settings
from wsgiserv.hooks import HaltServer
from wsgiserv.master.hook_worker import HookWorker, pack, unpack
from wsgiserv.master.hooks_server import HookServer
from wsgiserv.master.worker_handle import WorkerHandle


class Unloadable:
    def __reduce__(self) -> Any:
        return (int, ("no number",))


@pytest.fixture
def server() -> HookServer:
    return HookServer(Settings(workers=3), logging.getLogger("test.hooks"))


def worker(server: HookServer, **settings: Any) -> HookWorker:
    handle = WorkerHandle(age=2, generation=1, spawned_at=0.0, timeout=30.0, graceful_timeout=30.0)
    handle.view = HookWorker(handle, Settings(**settings), server)
    return handle.view  # type: ignore[no-any-return]


def test_what_hooks_hang_on_a_worker_is_theirs(server: HookServer) -> None:
    found = worker(server)
    assert found.attributes() == {}
    found.pool = found.slot = 7  # type: ignore[attr-defined]  # names of the handle's
    assert found.attributes() == {"pool": 7, "slot": 7}
    assert found._handle.pool is None


def test_a_limit_that_a_hook_has_read_is_the_workers(server: HookServer) -> None:
    found = worker(server, max_requests=100, max_requests_jitter=50)
    assert 100 <= found.max_requests <= 150
    assert found.attributes() == {"max_requests": found.max_requests}
    assert worker(server).attributes() == {}


def test_attributes_and_environment_travel() -> None:
    data, lost = pack({"a": {1: [2]}, "lock": threading.Lock(), "bad": Unloadable()}, {"SET": "1", "GONE": None})
    assert lost == ["lock"]
    environ = {"GONE": "x", "KEPT": "y"}
    attributes, failures = unpack(data, environ)
    assert attributes == {"a": {1: [2]}}
    assert list(failures) == ["bad"]
    assert environ == {"KEPT": "y", "SET": "1"}


def test_the_number_of_workers(server: HookServer) -> None:
    assert server.num_workers == 3
    server.set_num_workers(4)
    server.num_workers = 6
    assert server.num_workers == 6
    assert server.take_wanted() == 6
    assert server.take_wanted() is None
    assert server.num_workers == 4
    for bad in (0, -1, True, 2.0, "3"):
        with pytest.raises(ValueError, match="num_workers"):
            server.num_workers = bad  # type: ignore[assignment]


def test_halt(server: HookServer) -> None:
    assert server.halt_request is None
    with pytest.raises(HaltServer):
        server.halt("enough", 3)
    with pytest.raises(HaltServer):
        server.halt("again")
    assert server.halt_request == ("enough", 3)


def test_names_of_gunicorns_that_are_elsewhere(server: HookServer) -> None:
    with pytest.raises(AttributeError, match="num_workers"):
        server.spawn_worker()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        server.nothing  # noqa: B018 - the access is the test


def test_the_methods_of_signals(server: HookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    server.reload()
    server.handle_ttin()
    server.stop(graceful=False)
    assert sent == [(os.getpid(), signal.SIGHUP), (os.getpid(), signal.SIGTTIN), (os.getpid(), signal.SIGQUIT)]


def test_a_signal_goes_to_workers_only(server: HookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("wsgiserv.master.hook_worker.send_signal", lambda pid, number: sent.append((pid, number)))
    found = worker(server)
    found._handle.pid = 77
    server.WORKERS[77] = found
    server.kill_worker(0, signal.SIGTERM)
    server.kill_worker(-1, signal.SIGTERM)
    server.kill_workers(signal.SIGUSR1)
    assert found.alive
    server.kill_worker(77, signal.SIGTERM)
    assert sent == [(77, signal.SIGUSR1), (77, signal.SIGTERM)]
    assert found._handle.term_at is not None
    assert not found.alive


def test_in_a_worker_the_masters_methods_say_so(server: HookServer) -> None:
    server.pid += 1
    for call in (server.halt, lambda: server.kill_worker(1, 15)):
        with pytest.raises(RuntimeError, match=r"os\.kill\(server\.pid, signal\.SIGTERM\)"):
            call()
