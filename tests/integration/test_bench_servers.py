"""The servers of bench: started, weighed, stopped, from this checkout or another; and one that does not start."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from programs import need

from bench.compare import Comparison, Entry
from bench.peers import Peer, PeerEnvironment
from bench.scenarios import SCENARIOS
from bench.servers import Server, ServerError, Tree, ask, memory_of, ours, workers_of


def test_server_that_does_not_start_is_a_row(tmp_path: Path) -> None:
    need("taskset")
    executables = Path(shutil.which(sys.executable) or sys.executable).parent
    environment = cast(PeerEnvironment, SimpleNamespace(bin=executables))
    peer = Peer("gone", [], ["-c", "import nothing_of_this_name"], program=Path(sys.executable).name)
    found = Comparison(environment, tmp_path, 1).measure(Entry("gone", peer), SCENARIOS["hello"], True)
    assert found == {"trouble": "does not start: ModuleNotFoundError: No module named 'nothing_of_this_name'"}


def test_a_tree_runs_its_own_code_with_its_own_python(tmp_path: Path) -> None:
    for name in ("old", "new"):
        package = tmp_path / name / "wsgiserv"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(f"raise RuntimeError('this is {name}')\n")
    own = tmp_path / "new" / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.write_text(f'#!/bin/sh\necho "of its own" >&2\nexec {sys.executable} "$@"\n')
    own.chmod(0o755)
    old, new = (Tree.at(str(tmp_path / name)) for name in ("old", "new"))
    assert (old.python, new.python) == (Path(sys.executable), own)
    for tree in (old, new):
        server = Server(ours("sync"), tree=tree)
        with pytest.raises(ServerError, match=f"does not start: RuntimeError: this is {tree.path.name}"):
            server.__enter__()
        assert server.process.poll() is not None
        assert not server.directory.exists()
    with pytest.raises(ValueError, match="no checkout of wsgiserv"):
        Tree.at(str(tmp_path))


def test_server_is_asked_weighed_and_leaves_nothing() -> None:
    with Server(ours("sync", 2, "--no-control-socket"), files={"extra.txt": "text"}) as server:
        assert ask(server.address).endswith(b"hello\n")
        assert (server.directory / "extra.txt").read_text() == "text"
        workers = workers_of(server.master)
        assert len(workers) == 2
        assert server.first_answer_s > 0
        of_workers, whole = memory_of(workers), server.memory()
        assert 0 < of_workers.pss_kib < whole.pss_kib < whole.rss_kib
        assert server.cpu_time().user_s > 0
        assert server.wait_for_log(r"ready: (\d+) workers")[1] == "2"
    assert not server.directory.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
