"""The number of workers follows the load of a real server, and nobody's request is lost by it (issue 5)."""

from __future__ import annotations

import re
import signal

import pytest
from load import Load
from rawclient import RawClient
from server import Start, wait_until


# The rules are the same for all classes; tests/unit/master/test_autoscale.py has them one by one.
@pytest.mark.parametrize("worker_class", ["sync"], indirect=True)
def test_grows_under_load_and_shrinks_after_it(start: Start) -> None:
    server = start("apps:app", "--workers-min", "1", "--workers-max", "4", "--scale-window", "1")
    server.wait_for_log("ready: 1 worker")
    with Load(server.address, "/sleep?0.05", clients=10, pause_s=0.0) as load:
        # Ten clients at once are more than four workers.
        wait_until(lambda: len(server.workers()) == 4, "it has grown")
        load.wait_for_more(40)
        # A reload does not throw it back to the number it began with.
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("reloaded: 4 workers")
        load.wait_for_more(20)
    assert load.lost == []
    assert set.union(*(client.statuses for client in load.clients)) == {200}

    def asked_and_alone() -> bool:
        with RawClient(server.address) as client:
            assert client.get("/").status == 200
        return len(server.workers()) == 1

    wait_until(asked_and_alone, "it has shrunk again")
    server.wait_for_log(r"\b1 worker wanted, were 2")
    changes = re.findall(r"(\d) workers? wanted, were (\d): busy \d+%", server.log.text)
    counts = [1, *(int(after) for after, _ in changes)]
    assert [int(before) for _, before in changes] == counts[:-1]
    assert max(counts) == 4
    assert counts[counts.index(4) :] == [4, 3, 2, 1]
