"""systemd: the example units, sockets that are handed over, and what is left of them (issue 4).

No systemd runs as process 1 in a test: the units are verified by its own tool, and sockets are handed over by
``systemd-socket-activate``, or as systemd does it: from descriptor 3 on, with LISTEN_PID and LISTEN_FDS.
"""

from __future__ import annotations

import getpass
import signal
import socket
import subprocess
import sys
from pathlib import Path

from activation import APP, ask, served
from programs import need
from server import ROOT, Start, wait_until

UNITS = ROOT / "examples" / "systemd"
NOTIFY_UNIT = UNITS / "wsgiserv-notify.service"


def test_the_units(tmp_path: Path) -> None:
    program = need("systemd-analyze")
    for name in ("wsgiserv.service", "wsgiserv.socket"):
        text = (UNITS / name).read_text()
        # What the operator fills in must be there to be verified.
        text = text.replace("/srv/hello/venv/bin/wsgiserv", sys.executable)
        text = text.replace("User=www-data", f"User={getpass.getuser()}").replace("Group=www-data", "Group=root")
        (tmp_path / name).write_text(text)
    units = [str(tmp_path / "wsgiserv.service"), str(tmp_path / "wsgiserv.socket")]

    def verify() -> tuple[int, str]:
        done = subprocess.run([program, "verify", *units], capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout + done.stderr

    assert verify() == (0, "")
    service = tmp_path / "wsgiserv.service"
    service.write_text(service.read_text().replace("KillMode=", "KilMode="))
    assert "KilMode" in verify()[1]  # it would have been seen


def test_socket_activation(start: Start, tmp_path: Path, worker_class: str) -> None:
    program = need("systemd-socket-activate")
    path = str(tmp_path / "local.sock")
    with socket.socket() as reservation:
        # Bound, not listening, with SO_REUSEADDR: nobody else is given this port, and systemd may take it.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        address = reservation.getsockname()
        listens = ["-l", "{}:{}".format(*address), "-l", path, "--fdname=web:local"]
        passed = [f"-E{name}" for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")]
        command = [program, *listens, *passed, *served(worker_class)]
        server = start(None, bind="none", files={"shown.py": APP}, command=command)
        server.wait_for_log(r"Listening on .*local\.sock as 4")
        # The first connection starts the server, and is answered by it.
        assert ask(address).status == 200
        assert ask(path).status == 200
        server.wait_for_log(r"listening on .* \(sockets of the service manager; bind is not used\)")
        assert not (tmp_path / "unused.sock").exists()
        assert ask(path, "/variables").json() == []
        # A reload keeps the sockets, whatever bind says.
        old = server.workers()
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("reloaded")
        wait_until(lambda: not set(old) & set(server.workers()), "the old workers leave")
        assert {ask(each).status for each in (address, path)} == {200}
        assert not (tmp_path / "unused.sock").exists()
        assert server.stop() == 0
        assert (tmp_path / "local.sock").is_socket()  # systemd's, not the server's


def test_the_notify_unit(tmp_path: Path) -> None:
    program = need("systemd-analyze")
    text = NOTIFY_UNIT.read_text().replace("/srv/hello/venv/bin/wsgiserv", sys.executable).replace("=www-data", "=root")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    if int(version.split()[1]) < 253:  # the rest of it can be verified
        text = text.replace("Type=notify-reload", "Type=notify").replace("ReloadSignal=SIGHUP", "")
    unit = tmp_path / NOTIFY_UNIT.name
    unit.write_text(text)
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
