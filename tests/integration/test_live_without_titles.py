"""The server runs where the package setproctitle is not installed: without titles of its processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from server import HERE, ROOT, Connect, Start, bare_environment, run, title_of, wait_until

MISSING = """\
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "setproctitle":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def environment_without(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(MISSING)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), str(HERE)])}


def test_it_serves(start: Start, connect: Connect, tmp_path: Path) -> None:
    options = ("-w", "2", "--log-level", "debug", "--preload", "--pid", "pid")
    server = start("apps:app", *options, env=environment_without(tmp_path))
    server.wait_for_log(r"\[DEBUG\] no process titles: the package setproctitle is not installed")
    server.wait_for_log("ready: 2 workers")
    assert connect(server.address).get("/").status == 200
    for pid in server.workers():
        assert "wsgiserv: " not in title_of(pid)
    # A second server on the same pid file is told of the first.
    done = run(["-b", "127.0.0.1:0", "--pid", "pid", "apps:app"], tmp_path, environment_without(tmp_path))
    assert done.returncode == 2
    assert str(server.pid) in done.stderr


def test_a_master_is_known_by_its_command(start_unclassed: Start, tmp_path: Path) -> None:
    """`is_master` is asked about the process of a pid file."""
    server = start_unclassed("apps:app", env=environment_without(tmp_path))
    server.wait_for_log("ready")
    other = subprocess.Popen(["sleep", "60"])
    try:
        wait_until(lambda: "sleep" in title_of(other.pid), "sleep runs")
        code = (
            "import sys\n"
            "from wsgiserv.net.port_owner import is_master\n"
            "print([is_master(int(pid)) for pid in sys.argv[1:]])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(server.pid), str(other.pid), str(os.getpid())],
            env=bare_environment(),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.stdout == "[True, False, False]\n"
    finally:
        other.kill()
        other.wait()
