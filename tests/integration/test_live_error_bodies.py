"""What a refused client is told: nothing of the server's files and directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Start, wait_until


@pytest.mark.parametrize("stream", ["off", "auto", "on"])
def test_a_507_names_no_directory(start: Start, tmp_path: Path, stream: str) -> None:
    """Neither where a spool directory is configured, nor where none of the system's can be used."""
    (tmp_path / "hidden" / "spool").mkdir(parents=True)
    server = start(
        "apps:app",
        *("--body-buffer-size", "1000", "--spool-dir", str(tmp_path / "hidden" / "spool")),
        *("--stream-request-body", stream),
        expect=(r"refused with 507", "request body", r"\[ERROR\]|Traceback"),
    )
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
        (tmp_path / "hidden" / "spool").rmdir()  # after the start, which would refuse it
        response = client.get("/echo", body=b"x" * 100_000, method="POST")
    assert b"hidden" not in response.body
    assert str(os.getuid()).encode() not in response.body or os.getuid() == 0
    if stream == "off":
        assert (response.status, response.body) == (
            507,
            b"507 Insufficient Storage: the request body cannot be stored\n",
        )
        wait_until(lambda: "cannot be stored: No such file" in server.log.text, "the log says why")


def test_without_a_usable_temporary_directory(start: Start, tmp_path: Path) -> None:
    """tempfile lists the directories that it has tried in its error."""
    files = {
        "tempdirs.py": (
            "import tempfile\n"
            "def fail(*args):\n"
            "    raise FileNotFoundError(2, 'No usable temporary directory found in [\\'/tmp\\', \\'/srv/hidden\\']')\n"
            "tempfile.gettempdir = tempfile._get_default_tempdir = fail\n"
            "from apps import app\n"
        )
    }
    server = start(
        "tempdirs:app",
        *("--body-buffer-size", "1000", "--stream-request-body", "off"),
        files=files,
        expect=(r"refused with 507",),
    )
    with RawClient(server.address) as client:
        response = client.get("/echo", body=b"x" * 100_000, method="POST")
    assert response.status == 507
    assert b"/tmp" not in response.body
    assert b"hidden" not in response.body
    wait_until(lambda: "/srv/hidden" in server.log.text, "the log says where it has looked")
