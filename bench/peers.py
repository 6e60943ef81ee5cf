"""The servers that bench.compare sets side by side: how each is installed, and how it is started.

Owns: `SERVERS`, `PeerEnvironment`. Must not know: the load, the figures.
"""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

# What wsgiserv itself needs, and the applications.
_BASE = ["gevent>=24.10", "greenlet>=3.1", "setproctitle>=1.3.3", "flask>=3", "django>=5"]

_ADDRESS = ["-b", "127.0.0.1:{port}"]


class Peer(NamedTuple):
    """A server and how it is started.

    Attributes:
        name: as it is shown; the first word is the product.
        packages: what pip is to install.
        arguments: of the program, to which the application is added unless ``{app}`` stands for it.
        threads: the option for their number, when it has any.
        usual_threads: their number where the application does not wait.
        access_log: the option for the access log's file, when it is measured.
        serial: it runs one request at a time, so an application that waits tells nothing about it.
        pure: it is written in Python; the best of these is a rival.
        hint: what to do when it does not build.
        program: the name of a program beside Python that is run in its place.
    """

    name: str
    packages: Sequence[str]
    arguments: Sequence[str]
    threads: str | None = None
    access_log: str | None = None
    serial: bool = False
    pure: bool = True
    hint: str = ""
    program: str = "python"
    usual_threads: int = 8

    @property
    def product(self) -> str:
        """wsgiserv, gunicorn, ..."""
        return self.name.partition(" ")[0]

    def command(self, app: str, threads: int = 0, access_log: Path | None = None) -> list[str]:
        """Return the arguments with which it serves an application; ``{port}`` stands for the port."""
        found = list(self.arguments)
        threads = threads or self.usual_threads
        if self.arguments[:2] == ["-m", "bench.standalone"]:
            return [*found, "{port}", str(threads), app]
        if self.threads:
            found += [self.threads, str(threads)]
        if access_log and self.access_log:
            found += [self.access_log, str(access_log)]
        if "{app}" in found:
            return [app if argument == "{app}" else argument for argument in found]
        return [*found, app]


def _wsgiserv(kind: str, threads: str | None = None, serial: bool = False) -> Peer:
    arguments = ["-m", "wsgiserv", "-k", kind, "-w", "1", *_ADDRESS]
    return Peer(f"wsgiserv {kind}", [], arguments, threads, "--access-logfile", serial, pure=False)


def _gunicorn(kind: str, threads: str | None = None, serial: bool = False) -> Peer:
    arguments = ["-m", "gunicorn", "-k", kind, "-w", "1", *_ADDRESS, "--keep-alive", "75"]
    # Connections that a worker does not hold wait in the backlog: 500 of them must not.
    arguments += ["--worker-connections", "2048"]
    return Peer(f"gunicorn {kind}", ["gunicorn", "packaging"], arguments, threads, "--access-logfile", serial)


def _standalone(
    name: str,
    packages: Sequence[str],
    shown: str = "",
    *,
    serial: bool = False,
    pure: bool = True,
    hint: str = "",
) -> Peer:
    return Peer(
        shown or name, packages, ["-m", "bench.standalone", name], serial=serial, pure=pure, hint=hint
    )


_UWSGI = [
    *("--http", "127.0.0.1:{port}", "--http-keepalive", "--http-auto-chunked"),
    *("--master", "--processes", "1", "--listen", "1024", "--disable-logging", "--die-on-term", "--need-app"),
    *("--module", "{app}"),
]
_GRANIAN = [
    "-m",
    "granian",
    "--interface",
    "wsgi",
    "--workers",
    "1",
    "--host",
    "127.0.0.1",
    "--port",
    "{port}",
]

SERVERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        _wsgiserv("sync", serial=True),
        _wsgiserv("threads", "--threads"),
        _wsgiserv("gevent"),
        _gunicorn("sync", serial=True),
        _gunicorn("gthread", "--threads"),
        _gunicorn("gevent"),
        _standalone("waitress", ["waitress"]),
        _standalone("cheroot", ["cheroot"]),
        _standalone("gevent", [], "gevent.pywsgi"),
        _standalone("werkzeug", []),
        _standalone("wsgiref", [], serial=True),
        Peer(
            *("uWSGI", ["uwsgi"], _UWSGI, "--threads"),
            pure=False,
            hint="it needs a C compiler",
            program="uwsgi",
            usual_threads=1,
        ),
        Peer("granian", ["granian"], _GRANIAN, pure=False),
        _standalone("fastwsgi", ["setuptools<81", "fastwsgi"], serial=True, pure=False),
        _standalone(
            "bjoern",
            ["bjoern"],
            serial=True,
            pure=False,
            hint="Debian: apt-get install libev-dev gcc python3-dev",
        ),
        # It asks for a greenlet of 2020, which does not build, and would be everybody's; it gets the newer one.
        _standalone("meinheld", ["--no-deps", "meinheld"], serial=True, pure=False),
    )
}


def why(output: str) -> str:
    """Say in a few words why pip or a server has failed, from what it printed."""
    patterns = [
        r"fatal error: (.+)",
        r"^(?:\w+\.)*(\w*(?:Error|Exception|NotFound)\b.*)",
        r"(No matching distribution.*)",
        r"^\s*error: (.+)",
        r"^ERROR: (.+)",
    ]
    for pattern in patterns:
        found = re.findall(pattern, output, re.MULTILINE)
        if found:
            return _short(str(found[-1]))
    lines = [line for line in output.splitlines() if line.strip()]
    return _short(lines[-1]) if lines else "it said nothing"


def _short(text: str) -> str:
    # A path tells nothing to somebody else, and "|" would end the cell of a table.
    text = re.sub(r"(?:/[\w.+-]+){2,}/", "", text).replace("|", "/").strip()
    return text if len(text) <= 90 else text[:89] + "…"


class PeerEnvironment:
    """A virtual environment with all servers; what is in it already is left alone.

    Args:
        directory: where it is, or is to be.
        say: is told about progress.
    """

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self.bin = directory.resolve() / "bin"
        self.python = self.bin / "python"
        self._say = say
        self._constraints = directory / "constraints.txt"
        version = "{}.{}".format(*sys.version_info)
        if not self.python.exists():
            say(f"making a virtual environment in {directory}")
            venv.create(directory, with_pip=True, symlinks=True)
        elif not (directory / "lib" / f"python{version}").exists():
            raise RuntimeError(
                f"{directory} is of another Python than this one ({version}): remove it, or say --venv DIRECTORY"
            )

    def versions(self) -> dict[str, str]:
        """Return what is installed, under names in lower case."""
        rows = self._run("-m", "pip", "list", "--format", "freeze").stdout.splitlines()
        return {
            name.lower(): version for name, _, version in (row.partition("==") for row in rows) if version
        }

    def install(self, peers: Iterable[Peer]) -> dict[str, str]:
        """Install what is missing, each peer for itself; return why some could not be, by their names."""
        self._install(_BASE)
        # No peer may exchange what all of them, wsgiserv too, run on.
        base = [f"{name}=={version}\n" for name, version in self.versions().items() if name != "setuptools"]
        self._constraints.write_text("".join(base))
        troubles = {}
        for peer in peers:
            trouble = self._install(peer.packages, ["-c", str(self._constraints)])
            if trouble:
                hint = f" ({peer.hint})" if peer.hint else ""
                troubles[peer.name] = f"cannot be installed: {trouble}{hint}"
                self._say(f"{peer.name} {troubles[peer.name]}")
        return troubles

    def _install(self, packages: Sequence[str], options: Sequence[str] = ()) -> str:
        present = self.versions()
        wanted = [
            re.split(r"[<>=]", package)[0].lower() for package in packages if not package.startswith("-")
        ]
        if all(name in present for name in wanted):
            return ""
        self._say(f"pip install {' '.join(packages)}")
        done = self._run("-m", "pip", "install", "--disable-pip-version-check", *options, *packages)
        if done.returncode and packages is _BASE:
            raise RuntimeError(f"pip could not install {' '.join(packages)}:\n{done.stdout[-2000:]}")
        return why(done.stdout) if done.returncode else ""

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Standard error is of interest when something fails, and pip's warnings are no rows of a list.
        return subprocess.run(
            [str(self.python), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if "install" in arguments else subprocess.DEVNULL,
            text=True,
            timeout=900,
        )
