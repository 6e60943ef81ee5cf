"""gunicorn's KNOWN_SETTINGS walked with values made by rule: what gunicorn accepts, wsgiserv accepts.

gunicorn accepts a value when `Config.set` takes it and its master can start with it. A value that wsgiserv refuses
all the same is in `REFUSED`, and so in docs/migration-from-gunicorn.md.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gunicorn.config import KNOWN_SETTINGS, Config
from gunicornvalues import pairs

from wsgiserv.config.loader import collect

PAGE = Path(__file__).parents[3] / "docs" / "migration-from-gunicorn.md"
HEADING = "## Values that gunicorn accepts and wsgiserv refuses"


class Refused(NamedTuple):
    """Values that are refused, as the page lists them.

    Attributes:
        settings: the names, separated by blanks.
        values: a pattern of the value's source text.
        shown: the values as the page has them.
        reason: why, as the page has it.
    """

    settings: str
    values: str
    shown: str
    reason: str

    @property
    def row(self) -> str:
        """The row of the page's table."""
        return f"| {', '.join(f'`{name}`' for name in self.settings.split())} | {self.shown} | {self.reason} |"


_OTHER_TYPES = r"False|0|\{\}|\('a' for .*"

REFUSED = (
    Refused("bind", r"''|' '|\[\]|False|0|\{\}", "nothing: `''`, `[]`, `0`", "no worker of gunicorn boots with it"),
    Refused("bind", r"'\d+'", "a port alone: `'8000'`", "gunicorn takes it for a host of that name; write `':8000'`"),
    Refused("bind", r"'127\.0\.0\.1:99999'", "a port above 65535", "gunicorn fails at the start"),
    Refused(
        "bind", r"\['a:1', 'a:1'\]", "the same address twice", "gunicorn fails at the start: the address is in use"
    ),
    Refused("bind", r"'unix:'", "`'unix:'`", "the path is missing: gunicorn fails at the start"),
    Refused("bind", r"\('a' for .*", "a generator", "it can be read once only; write a list"),
    Refused("backlog", r"0|False", "`0`", "the kernel would hold one connection; leave it out for 2048"),
    Refused("workers", r"0|False", "`0`", "gunicorn starts, and serves nobody"),
    Refused(
        "threads worker_connections",
        r"0|False",
        "`0`",
        "gunicorn's `gthread` or `gevent` fails or serves nobody, its `sync` ignores it; write `1`",
    ),
    Refused(
        "workers threads",
        r"65535|2\*\*31|10\*\*\d+",
        "more than 10000",
        "a slip: no host runs as many; `worker_connections` has no such bound",
    ),
    Refused(
        "worker_class",
        r"'(tornado|asgi|gunicorn\.workers\.gasgi\.ASGIWorker|uvicorn\.workers\.UvicornWorker)'",
        "`'tornado'`, `'asgi'`, `uvicorn.workers.*`",
        "they serve ASGI or Tornado applications",
    ),
    Refused(
        "timeout graceful_timeout keepalive limit_request_line limit_request_field_size",
        r"'0[xo]\w+'",
        "text such as `'0x10'`",
        "text is a duration or a size here: `'30'`, `'2m'`, `'8K'`; in Python code write `0x10`",
    ),
    Refused(
        "reload_extra_files raw_env raw_paste_global_conf",
        _OTHER_TYPES,
        "`0`, `False`, `{}`",
        "no list; `[]` and `None` are taken",
    ),
    Refused(
        "raw_env raw_paste_global_conf",
        r"''|\['=1'\]",
        "`''`, `['=1']`",
        "a variable without a name; gunicorn ignores the first and fails with the other",
    ),
    Refused("user group", r"-1", "`-1`", "no user has that number: no worker of gunicorn boots with it"),
    Refused(
        "umask control_socket_mode",
        r"65535|2\*\*31|10\*\*12|0o1000|512",
        "more than `0o777`",
        "no mask or mode has more bits",
    ),
    Refused(
        "umask control_socket_mode",
        r"True|False",
        "`True`, `False`",
        "a slip: the masks and modes 1 and 0 are written `1` and `0`",
    ),
    Refused(
        "umask control_socket_mode",
        r"' 8 '|'0x1\d'",
        "text that is not octal",
        "text is octal here, as of umask(1): `'022'`",
    ),
    Refused("logger_class", r"lambda: 'sync'", "the name of a worker class", "gunicorn fails at the start"),
    Refused("paste", r"'.+'", "a file that does not exist", "gunicorn fails when it loads the application"),
    Refused(
        "secure_scheme_headers",
        r"\{'A': 1\}|\{1: 'a'\}",
        "names or values that are no text",
        "no header would ever match",
    ),
    Refused(
        "loglevel",
        r"'( |text|1|-| padded |x/y\.z|é|warn|trace|notset|)'",
        "an unknown level: `'verbose'`",
        "gunicorn takes it for `info`: more or less is logged than is meant",
    ),
    Refused(
        "protocol",
        r"'( |text|1|-| padded |x/y\.z|é|fcgi|)'",
        "an unknown protocol: `'fcgi'`",
        "gunicorn speaks HTTP then, and the proxy does not",
    ),
    Refused("keyfile", r"'.+'", "a key without `certfile`", "gunicorn starts, and each handshake fails"),
    Refused("cert_reqs", r"'?[ \w*]+'?", "more than 2", "gunicorn starts, and each handshake fails"),
    Refused(
        "root_path",
        r"'[^/].*'",
        "without a slash at its beginning: `'shop'`",
        "gunicorn uses it for ASGI applications alone; here it is the beginning of each path",
    ),
)


def is_listed(name: str, source: str) -> bool:
    return any(name in row.settings.split() and re.fullmatch(row.values, source) for row in REFUSED)


# Their modules patch the library or need other packages when they are loaded: names are enough.
_NOT_LOADED = re.compile(r"gevent|tornado|asgi|uvicorn")


class Theirs:
    """Tells whether gunicorn accepts a value."""

    def __init__(self) -> None:
        self._cfg = Config()

    def accepts(self, name: str, value: object) -> bool:
        """Set it, look at all that its master reads at the start, and set it back."""
        cfg = self._cfg
        setting = cfg.settings[name]
        before = setting.value
        cfg.env_orig = {}
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                cfg.set(name, value)
                cfg.validate()
            self._read(name)
        except Exception:
            return False
        finally:
            setting.value = before
        return True

    def _read(self, name: str) -> None:
        cfg = self._cfg
        for read in ("address", "env", "uid", "gid", "is_ssl", "proc_name", "paste_global_conf", "ssl_options"):
            getattr(cfg, read)
        if name == "logger_class":
            assert cfg.logger_class
        if name == "worker_class" and not _NOT_LOADED.search(str(cfg.settings[name].value)):
            assert cfg.worker_class


class Ours:
    """Tells whether wsgiserv accepts a value in a configuration file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "gunicorn.conf.py"

    def fault(self, name: str, source: str) -> str:
        """Return the fault, or nothing."""
        self._file.write_text(f"{name} = {source}\n")
        return "; ".join(map(str, collect([], {}, str(self._directory)).faults))


def walk() -> Iterator[tuple[str, str, Any]]:
    """Return each pair, with the value for gunicorn."""
    for name, source in pairs(KNOWN_SETTINGS):
        yield name, source, eval(source)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """gunicorn warns of patterns that match no file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_there_are_enough_pairs() -> None:
    each = [name for name, _, _ in walk()]
    assert len(each) >= 1000
    assert set(each) == {known.name for known in KNOWN_SETTINGS}
    theirs = Theirs()
    assert sum(theirs.accepts(name, value) for name, _, value in walk()) >= 1000


@pytest.mark.timeout(300)
def test_what_gunicorn_accepts_is_accepted(tmp_path: Path) -> None:
    theirs, ours = Theirs(), Ours(tmp_path)
    faults = []
    needless = {row.row for row in REFUSED}
    for name, source, value in walk():
        if not theirs.accepts(name, value):
            continue
        fault = ours.fault(name, source)
        if fault and not is_listed(name, source):
            faults.append(f"{name} = {source}: {fault}")
        if fault:
            needless -= {
                row.row for row in REFUSED if name in row.settings.split() and re.fullmatch(row.values, source)
            }
    assert not faults, "\n".join(faults)
    assert not needless, "no value needs these rows:\n" + "\n".join(needless)


def test_the_page_names_each() -> None:
    section = PAGE.read_text().partition(HEADING)[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [row.row for row in REFUSED]
