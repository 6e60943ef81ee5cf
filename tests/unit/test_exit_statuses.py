"""The rule: exit statuses, the documentation and the service units agree on what another try can mend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wsgiserv.errors import ApplicationError, BootError, ConfigError, ExitStatus, UnavailableError, WsgiservError

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "examples" / "systemd").glob("*.service"))


def test_the_documentation_has_the_statuses_of_the_code() -> None:
    text = (ROOT / "docs" / "signals.md").read_text()
    section = text.partition("## Exit statuses")[2].partition("\n## ")[0]
    documented = {int(found[1]): found[2] for found in re.finditer(r"^\| (\d) \| (.*) \|$", section, re.MULTILINE)}
    meant = {
        ExitStatus.OK: "stopped as told",
        UnavailableError.exit_status: "does not resolve",
        WsgiservError.exit_status: "error of the server itself",
        ExitStatus.CONFIG: "bad usage or configuration",
        ExitStatus.BOOT: "the workers cannot boot",
        ExitStatus.APPLICATION: "the application cannot be loaded",
    }
    assert set(documented) == set(meant)
    for status, words in meant.items():
        assert words in documented[status]


def test_errors_and_processes_have_the_same_statuses() -> None:
    statuses = (ConfigError.exit_status, BootError.exit_status, ApplicationError.exit_status)
    assert statuses == (ExitStatus.CONFIG, ExitStatus.BOOT, ExitStatus.APPLICATION)
    assert UnavailableError.exit_status == 1


@pytest.mark.parametrize("path", [*UNITS, ROOT / "docs" / "deployment.md"], ids=lambda path: path.name)
def test_units_try_again_after_everything_but_a_wrong_configuration(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^RestartPreventExitStatus=(.*)$", text, re.MULTILINE) == [str(ExitStatus.CONFIG)]
    assert re.findall(r"^Restart=(.*)$", text, re.MULTILINE) == ["always"]
    # systemd gives up after 5 starts in 10 s (DefaultStartLimitBurst=, DefaultStartLimitIntervalSec=).
    [pause] = re.findall(r"^RestartSec=(.*)$", text, re.MULTILINE)
    assert float(pause) * 4 > 10


def test_supervisor_tries_again_after_every_status() -> None:
    assert re.search(r"^autorestart = true$", (ROOT / "examples" / "supervisord.conf").read_text(), re.MULTILINE)
