"""Programs that are not Python packages: curl, ab, wrk, nginx, haproxy, caddy, supervisor, systemd's, chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_PACKAGES = "curl apache2-utils wrk nginx haproxy caddy supervisor systemd chromium"


def need(program: str) -> str:
    """Return the path of a system program, or skip the test; under WSGISERV_REQUIRE_SYSTEM=1, fail it."""
    path = shutil.which(program)
    if path is None:
        if os.environ.get("WSGISERV_REQUIRE_SYSTEM") == "1":
            pytest.fail(f"{program} is not installed, and WSGISERV_REQUIRE_SYSTEM=1; .ci/run installs it")
        pytest.skip(f"{program} is not installed (Debian: apt-get install {_PACKAGES})")
    return path


def curl(*args: str, cwd: Path | None = None) -> str:
    """Run curl and return what it printed; it fails on connection errors, not on HTTP statuses."""
    command = [need("curl"), "--silent", "--show-error", "--max-time", "30", "--noproxy", "*", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, cwd=cwd, check=False)
    assert done.returncode == 0, f"{command}: exit {done.returncode}: {done.stderr}"
    return done.stdout
