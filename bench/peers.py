"""The servers of bench compare: how each is installed, and how it is started."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.servers import ROOT, ours, why
from bench.table import say

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The needs of wsgiserv itself, and the applications.
_BASE = [
    *_PROJECT["dependencies"],
    *(name for name in _PROJECT["optional-dependencies"]["frameworks"] if name.startswith(("flask", "django"))),
]
_STANDALONE = ["-m", "bench.standalone"]


class Peer(NamedTuple):
    """A server and the way to start it.

    Attributes:
        name: as it is shown; the first word is the product.
        packages: for pip.
        arguments: of the program. The application is added unless ``{app}`` stands for it.
        threads: the option for their number.
        access_log: the option for the access log's file, where it is measured.
        serial: it runs one request at a time, so an application that waits shows nothing.
        pure: it is written in Python; the best of these is a rival.
        hint: what to install when it does not build.
        program: the name of a program beside Python that is run in its place.
        usual_threads: their number where the application does not wait.
    """

    name: str
    packages: Sequence[str]
    arguments: Sequence[str]
    threads: str = ""
    access_log: str = ""
    serial: bool = False
    pure: bool = True
    hint: str = ""
    program: str = "python"
    usual_threads: int = 8

    def command(self, app: str, threads: int = 0, access_log: str = "") -> list[str]:
        """Return the arguments with which it serves an application; ``{port}`` stands for the port."""
        found = list(self.arguments)
        count = str(threads or self.usual_threads)
        if found[:2] == _STANDALONE:
            return [*found, "{port}", count, app]
        if self.threads:
            found += [self.threads, count]
        if access_log and self.access_log:
            found += [self.access_log, access_log]
        return [app if each == "{app}" else each for each in (found if "{app}" in found else [*found, "{app}"])]


def _wsgiserv(kind: str, threads: str = "", serial: bool = False) -> Peer:
    arguments = ours(kind, app="{app}", address="127.0.0.1:{port}")[:-1]
    return Peer(f"wsgiserv {kind}", [], arguments, threads, "--access-logfile", serial, pure=False)


def _gunicorn(kind: str, threads: str = "", serial: bool = False) -> Peer:
    # Connections beyond --worker-connections wait in the backlog, and 500 of them must not.
    options = "-w 1 -b 127.0.0.1:{port} --keep-alive 75 --worker-connections 2048"
    arguments = ["-m", "gunicorn", "-k", kind, *shlex.split(options)]
    return Peer(f"gunicorn {kind}", ["gunicorn", "packaging"], arguments, threads, "--access-logfile", serial)


def _standalone(
    name: str, *packages: str, shown: str = "", serial: bool = False, pure: bool = True, hint: str = ""
) -> Peer:
    return Peer(shown or name, packages, [*_STANDALONE, name], serial=serial, pure=pure, hint=hint)


_UWSGI = shlex.split(
    "--http 127.0.0.1:{port} --http-keepalive --http-auto-chunked --master --processes 1 --listen 1024 "
    "--disable-logging --die-on-term --need-app --module {app}"
)
_GRANIAN = shlex.split("-m granian --interface wsgi --workers 1 --host 127.0.0.1 --port {port}")
_LIBEV = "apt-get install libev-dev gcc"

SERVERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        _wsgiserv("sync", serial=True),
        _wsgiserv("threads", "--threads"),
        _wsgiserv("gevent"),
        _gunicorn("sync", serial=True),
        _gunicorn("gthread", "--threads"),
        _gunicorn("gevent"),
        _standalone("waitress", "waitress"),
        _standalone("cheroot", "cheroot"),
        _standalone("gevent", shown="gevent.pywsgi"),
        _standalone("werkzeug"),
        _standalone("wsgiref", serial=True),
        Peer("uWSGI", ["uwsgi"], _UWSGI, "--threads", "", False, False, "it needs a C compiler", "uwsgi", 1),
        Peer("granian", ["granian"], _GRANIAN, pure=False),
        _standalone("fastwsgi", "setuptools<81", "fastwsgi", serial=True, pure=False),
        _standalone("bjoern", "bjoern", serial=True, pure=False, hint=_LIBEV),
        # It asks for a greenlet of 2020, which does not build, and would be everybody's; it gets the newer one.
        _standalone("meinheld", "--no-deps", "meinheld", serial=True, pure=False),
    )
}


class PeerEnvironment:
    """An environment with the servers: a virtual one of its own, whose missing servers are installed, or this Python's.

    Args:
        directory: of the virtual environment; None for this Python.
    """

    def __init__(self, directory: Path | None) -> None:
        self.bin = (directory.resolve() / "bin") if directory else Path(sys.executable).parent
        self._constraints = None if directory is None else directory / "constraints.txt"
        version = "{}.{}".format(*sys.version_info)
        if directory is None:
            return
        if not (self.bin / "python").exists():
            say(f"making a virtual environment in {directory}")
            venv.create(directory, with_pip=True, symlinks=True)
        elif not (directory / "lib" / f"python{version}").exists():
            raise RuntimeError(f"{directory} is not of Python {version}: remove it, or say --venv DIRECTORY")

    def versions(self) -> dict[str, str]:
        """Return the installed versions, under names in lower case."""
        rows = self._pip("list", "--format", "freeze").stdout.splitlines()
        return {name.lower(): version for name, _, version in (row.partition("==") for row in rows) if version}

    def install(self, peers: Iterable[Peer]) -> dict[str, str]:
        """Install each peer for itself; return why some could not be, by their names."""
        if self._constraints is None:
            return {}
        if trouble := self._install(_BASE):
            raise RuntimeError(f"pip could not install {' '.join(_BASE)}: {trouble}")
        # No peer may exchange a package that all of them, wsgiserv too, run on.
        base = [f"{name}=={version}\n" for name, version in self.versions().items() if name != "setuptools"]
        self._constraints.write_text("".join(base))
        troubles = {}
        for peer in peers:
            if trouble := self._install(peer.packages, "-c", str(self._constraints)):
                hint = f" ({peer.hint})" if peer.hint else ""
                troubles[peer.name] = f"cannot be installed: {trouble}{hint}"
                say(f"{peer.name} {troubles[peer.name]}")
        return troubles

    def _install(self, packages: Sequence[str], *options: str) -> str:
        present = self.versions()
        wanted = [re.split(r"[<>=]", package)[0].lower() for package in packages if package[0] != "-"]
        if all(name in present for name in wanted):
            return ""
        say(f"pip install {' '.join(packages)}")
        done = self._pip("install", "--disable-pip-version-check", *options, *packages)
        return why(done.stdout) if done.returncode else ""

    def _pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Standard error is of interest when something fails, and pip's warnings are no rows of a list.
        return subprocess.run(
            [str(self.bin / "python"), "-m", "pip", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if "install" in arguments else subprocess.DEVNULL,
            text=True,
            timeout=900,
            check=False,
        )
