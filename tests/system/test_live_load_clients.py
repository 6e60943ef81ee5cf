"""The clients that people measure with: ab and wrk."""

from __future__ import annotations

import re
import subprocess

import pytest
from programs import need
from server import Server


@pytest.mark.parametrize("keep", [[], ["-k"]], ids=["a connection each", "keep-alive"])
def test_ab(server: Server, keep: list[str]) -> None:
    command = [need("ab"), "-q", "-n", "500", "-c", "10", *keep, server.url + "/"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=40, check=True).stdout
    assert re.search(r"Complete requests:\s+500\b", printed), printed
    assert re.search(r"Failed requests:\s+0\b", printed), printed
    assert "Non-2xx" not in printed
    if keep:
        assert re.search(r"Keep-Alive requests:\s+500\b", printed), printed


def test_wrk(server: Server) -> None:
    command = [need("wrk"), "-t1", "-c16", "-d1s", server.url + "/"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=40, check=True).stdout
    assert "Non-2xx" not in printed
    assert "Socket errors" not in printed
    found = re.search(r"(\d+) requests in", printed)
    assert found is not None
    assert int(found[1]) > 0
