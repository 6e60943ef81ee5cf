"""The rule: `wsgiserv migrate` keeps the file's meaning, and says in comments what is different here."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gunicorn.config
import pytest
from gunicornfiles import BESIDE, all_cases
from server import bare_environment

from wsgiserv.cli import main
from wsgiserv.config.gunicorn_differences import OTHER_DEFAULTS, OTHER_EFFECTS
from wsgiserv.config.names import BY_ALIAS
from wsgiserv.config.settings import SETTINGS
from wsgiserv.migrate.rewrite import migrate

SUPPORT = Path(__file__).parents[1] / "support"
PAGE = Path(__file__).parents[2] / "docs" / "migration-from-gunicorn.md"
CASES = all_cases()


def code_of(text: str) -> list[str]:
    """Return the lines that are no comments and not empty."""
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def comments_of(text: str) -> str:
    """Return the comments that migrate has added, each on a line."""
    body = text.partition("\n\n")[2]
    return re.sub(r"\n\s*#   (?! )", " ", body)


def migrated(source: str) -> str:
    made = migrate(source, "gunicorn.conf.py").text
    compile(made, "made", "exec")
    return made


# ---- what the code becomes -----------------------------------------------------------------------------------

# The source, and its code afterwards.
CODE: dict[str, tuple[str, str]] = {
    "nothing special": ("bind = ':8000'  # all\nworkers = 4\n", "bind = ':8000'  # all\nworkers = 4\n"),
    "an old name": ("logfile = '/var/log/shop.log'\n", "errorlog = '/var/log/shop.log'\n"),
    "an alias, and where it is read": (
        "tmp_upload_dir = '/x'\nimport os\nos.makedirs(tmp_upload_dir)\n",
        "spool_dir = '/x'\nimport os\nos.makedirs(spool_dir)\n",
    ),
    "an alias behind text that is not ASCII": ("x = 'é'; tmp_upload_dir = x\n", "x = 'é'; spool_dir = x\n"),
    "an alias that is read in a function": (
        "tmp_upload_dir = '/x'\ndef on_exit(server):\n    print(tmp_upload_dir)\n",
        "spool_dir = '/x'\ndef on_exit(server):\n    print(spool_dir)\n",
    ),
    "an alias that is imported": (
        "from shared import tmp_upload_dir, workers\n",
        "from shared import tmp_upload_dir as spool_dir, workers\n",
    ),
    "an alias by another name": ("from shared import x as logfile\n", "from shared import x as errorlog\n"),
    "an alias that a function has, too": (
        "tmp_upload_dir = '/x'\ndef f(tmp_upload_dir):\n    return tmp_upload_dir\n",
        "tmp_upload_dir = '/x'\ndef f(tmp_upload_dir):\n    return tmp_upload_dir\n",
    ),
    "an alias that a hook reads from cfg": (
        "tmp_upload_dir = '/x'\ndef on_exit(server):\n    print(server.cfg.tmp_upload_dir)\n",
        "tmp_upload_dir = '/x'\ndef on_exit(server):\n    print(server.cfg.tmp_upload_dir)\n",
    ),
    "an alias whose new name is taken": (
        "spool_dir = '/a'\ntmp_upload_dir = '/x'\n",
        "spool_dir = '/a'\ntmp_upload_dir = '/x'\n",
    ),
    "an alias in a text": ("logfile = '/x'\nprint(f'{logfile}!')\n", "logfile = '/x'\nprint(f'{logfile}!')\n"),
    "an old name beside the new one": ("errorlog = '-'\nlogfile = '/x'\n", "errorlog = '-'\n"),
    "a function of an old name": ("def logfile():\n    return 1\n", "def logfile():\n    return 1\n"),
    "a worker class": ("worker_class = 'gthread'\n", 'worker_class = "threads"\n'),
    "a worker class by path": ("worker_class = 'gunicorn.workers.sync.SyncWorker'\n", 'worker_class = "sync"\n'),
    "a worker class over two lines": ("worker_class = ('g'\n  'thread')\n", "worker_class = ('g'\n  'thread')\n"),
    "a worker class of an egg": ("worker_class = 'egg:gunicorn#gevent'\n", 'worker_class = "gevent"\n'),
    "a worker class that is compared": (
        "worker_class = 'gthread'\nthreads = 4 if worker_class == 'gthread' else 1\n",
        "worker_class = 'gthread'\nthreads = 4 if worker_class == 'gthread' else 1\n",
    ),
    "a worker class that is computed": (
        "import os\nworker_class = os.getenv('K', 'gthread')\n",
        "import os\nworker_class = os.getenv('K', 'gthread')\n",
    ),
    "a class of one's own": ("worker_class = 'shop.Worker'\n", "worker_class = 'shop.Worker'\n"),
    "an engine": ("reload_engine = 'inotify'\n", 'reload_engine = "auto"\n'),
    "a setting without a use": ("asgi_loop = True\nworkers = 2\n", "workers = 2\n"),
    "several lines without a use": ("dirty_apps = [\n    'a:b',\n]\nworkers = 2\n", "workers = 2\n"),
    "a text over lines without a use": ('asgi_loop = """a\n  b"""\nworkers = 2\n', "workers = 2\n"),
    "without a use, computed": ("import os\nasgi_loop = os.environ.get('S')\n", "import os\n"),
    "without a use, by a call with effects": ("asgi_lifespan = begin()\n", "asgi_lifespan = begin()\n"),
    "without a use, and read": (
        "asgi_loop = True\ncapture_output = asgi_loop\n",
        "asgi_loop = True\ncapture_output = asgi_loop\n",
    ),
    "without a use, and read by a hook": (
        "asgi_loop = 'a:1'\ndef on_exit(server):\n    print(server.cfg.asgi_loop)\n",
        "asgi_loop = 'a:1'\ndef on_exit(server):\n    print(server.cfg.asgi_loop)\n",
    ),
    "without a use, and extended": (
        "dirty_apps = ['a']\ndirty_apps += ['b']\n",
        "dirty_apps = ['a']\ndirty_apps += ['b']\n",
    ),
    "without a use, and deleted": ("asgi_loop = True\ndel asgi_loop\n", "asgi_loop = True\ndel asgi_loop\n"),
    "an old name that is deleted": ("logfile = '/x'\ndel logfile\n", "logfile = '/x'\ndel logfile\n"),
    "without a use, alone in a block": ("if x:\n    asgi_loop = True\n", "if x:\n    asgi_loop = True\n"),
    "without a use, beside others on its line": ("asgi_loop = True; workers = 2\n", "asgi_loop = True; workers = 2\n"),
    "without a use, among names of globals()": (
        "asgi_loop = True\nfor n in ('a',):\n    globals()[n] = 1\n",
        "asgi_loop = True\nfor n in ('a',):\n    globals()[n] = 1\n",
    ),
    "a hook without a use": ("def on_dirty_starting(arbiter):\n    pass\nworkers = 2\n", "workers = 2\n"),
    "a function of one's own under such a name": ("def debug():\n    pass\n", "def debug():\n    pass\n"),
    "a module under such a name": ("import debug, threads\n", "import debug, threads\n"),
    "a declaration without a value": ("asgi_loop: bool\ntimeout: int = 5\n", "asgi_loop: bool\ntimeout: int = 5\n"),
    "no newline at the end": ("workers = 2", "workers = 2\n"),
    "nothing": ("\n", ""),
}


@pytest.mark.parametrize("name", CODE)
def test_code(name: str) -> None:
    source, expected = CODE[name]
    assert code_of(migrated(source)) == code_of(expected)


# ---- what the comments say -----------------------------------------------------------------------------------

COMMENTS: dict[str, tuple[str, list[str]]] = {
    "renamed": ("tmp_upload_dir = '/x'\n", ["was tmp_upload_dir"]),
    "not renamed": ("logfile = '/x'\nprint(f'{logfile}')\n", ["logfile is gunicorn's old name of errorlog", "Rename"]),
    "without a use": ("asgi_loop = 'a:1'\n", ["asgi_loop is not used", "ASGI server"]),
    "a value that is refused": ("workers = 0\n", ["CHANGE THIS", "workers = 0 is not accepted", "at least 1"]),
    "a class that is refused": ("worker_class = 'tornado'\n", ["CHANGE THIS", "threads"]),
    "a value that is too large": ("timeout = 99999999999\n", ["the largest is", "used instead"]),
    "a name that is no setting": ("preload = True\n", ["not a setting", "preload_app"]),
    "trusted proxies": ("forwarded_allow_ips = '10.0.0.1'\n", ["any other peer are removed"]),
    "trusted proxies, computed": ("forwarded_allow_ips = f()\n", ["any other peer are removed"]),
    "no trusted proxies": ("workers = 2\n", ["forwarded_allow_ips is not set", "# forwarded_allow_ips ="]),
    "a default": ("workers = 2\n", ["# keepalive = 2 ", "# 75 s here: "]),
    "a worker of one's own": ("class W: ...\nworker_class = W\n", ["overrides run, handle"]),
    "a logger of one's own": ("from a import L\nlogger_class = L\n", ["derived from gunicorn's Logger"]),
    "gunicorn": ("import gunicorn\ngunicorn.SERVER_SOFTWARE = 'x'\n", ["stand-ins", "server_header"]),
    "a star": ("from .base import *\n", ["settings of .base count"]),
    "threads in the second place": (
        "if x:\n    worker_class = 'gevent'\nelse:\n    worker_class = 'gthread'\n",
        ["\n    # wsgiserv: timeout also ends a worker when all of its threads"],
    ),
    "in a block": ("if x:\n    user = 'shop'\n", ["\n    # wsgiserv: as root, HOME", "# initgroups = False"]),
    "preload": ("preload_app = True\n", ["preload_in = 'master'"]),
}
SILENT: dict[str, tuple[str, list[str]]] = {
    "any proxy": ("forwarded_allow_ips = '*'\n", ["removed", "forwarded_allow_ips is not set"]),
    "defaults that are set": ("keepalive = 5\nlimit_request_line = 1\n", ["keepalive", "limit_request_line"]),
    "no user": ("workers = 2\n", ["initgroups"]),
    "off": ("preload_app = False\numask = 0\nroot_path = ''\n", ["preload_in", "mask", "ASGI"]),
    "None": ("worker_tmp_dir = None\nlogger_class = None\n", ["worker_tmp_dir", "Logger"]),
    "a word of ours": ("worker_class = 'sync'\n", ["was", "overrides", "threads"]),
    "names of the file's own": ("shop_name = 2\nPRELOAD = 1\n", ["not a setting"]),
}


@pytest.mark.parametrize("name", COMMENTS)
def test_a_comment_is_there(name: str) -> None:
    source, parts = COMMENTS[name]
    made = comments_of(migrated(source))
    assert [part for part in parts if part not in made] == [], made


@pytest.mark.parametrize("name", SILENT)
def test_no_comment_is_there(name: str) -> None:
    source, parts = SILENT[name]
    # In front of the defaults each line is one of the file's, or a comment about it.
    made = comments_of(migrated(source))
    assert [part for part in parts if part in made.replace(source, "")] == [], made


def test_a_comment_never_falls_into_a_text_over_lines() -> None:
    made = migrated('x = """\nuser = 1\n"""; user = "shop"\n')
    assert '"""\nuser = 1\n"""' in made
    assert ast.literal_eval(ast.parse(made).body[0].value) == "\nuser = 1\n"  # type: ignore[attr-defined]


def test_the_first_lines_stay_the_first() -> None:
    first = "#!/usr/bin/env python3\n# -*- coding: latin-1 -*-\n"
    made = migrated(f"{first}'''Doc.'''\nfrom __future__ import annotations\n")
    assert made.startswith(f"{first}# gunicorn.conf.py for wsgiserv")
    assert ast.get_docstring(ast.parse(made)) == "Doc."


# ---- the tables ----------------------------------------------------------------------------------------------


def test_each_default_that_differs_is_in_the_table() -> None:
    """Of gunicorn's settings; ours alone are there where they stop what gunicorn allows."""
    listed = {each.name for each in OTHER_DEFAULTS}
    # The same in other words, or another server's name and place.
    same = {"config", "sendfile", "chdir", "access_log_format", "default_proc_name", "control_socket", "group"}
    for known in gunicorn.config.KNOWN_SETTINGS:
        setting = SETTINGS.get(BY_ALIAS.get(known.name, known.name))
        if setting is None or known.name in same or callable(known.default) or known.default is None:
            continue
        assert (setting.parse(known.default) != setting.default) == (setting.name in listed), known.name


def test_the_page_has_the_table() -> None:
    section = PAGE.read_text().partition("## Defaults that differ\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{each.name}` | {each.theirs} | {each.ours} | {each.why} |" for each in OTHER_DEFAULTS]


def test_each_value_of_the_table_is_accepted() -> None:
    for each in OTHER_DEFAULTS:
        SETTINGS[each.name].parse(ast.literal_eval(each.value))
    assert {each.name for each in OTHER_EFFECTS} <= set(SETTINGS)


# ---- real files ----------------------------------------------------------------------------------------------

# Settings without a use that stay, since they are read, or are set where they cannot be left out.
NOTED = re.compile(r"WS103[3-7] ")
STAYS = {"azure_app_service": "log_file", "helpers_in_the_file": "debug django_settings"}


@pytest.fixture(scope="module")
def loader() -> Iterator[subprocess.Popen[str]]:
    """A process that loads configuration files."""
    command = [sys.executable, "-W", "ignore", str(SUPPORT / "migratedfiles.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=bare_environment(), stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_settings_stay_the_same(loader: subprocess.Popen[str], tmp_path: Path, case: Any) -> None:
    """Each file of the corpus, and what is made of it, both loaded."""
    directory, name = tmp_path / "site", case.name
    shutil.copytree(BESIDE, directory, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(case.path, directory / "gunicorn.conf.py")
    (directory / "wsgiserv.conf.py").write_text(migrate(case.path.read_text(), "gunicorn.conf.py").text)
    (directory / "environ.json").write_text(json.dumps({"HOME": str(directory), "UDP_PORT": "1", **case.env}))
    assert loader.stdin is not None
    assert loader.stdout is not None
    print(directory, file=loader.stdin, flush=True)
    before, after = json.loads(loader.stdout.readline())
    assert "error" not in before, before
    assert after["settings"] == before["settings"]
    assert after["faults"] == before["faults"]
    noted = [notice for notice in after["notices"] if NOTED.match(notice)]
    assert re.findall(r"^WS\d+ (\w+)", "\n".join(noted), re.MULTILINE) == STAYS.get(name, "").split()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_code_stays_as_it_is(case: Any) -> None:
    """All but comments, lines that are commented out, and values that are mapped."""
    source = case.path.read_text()
    made = migrated(source)
    assert migrated(made)  # of its own output, too
    kept = [token.string for token in tokenize.generate_tokens(io.StringIO(made).readline)]
    for line in source.splitlines():
        assert line in made or any(word in line for word in ("worker_class", "tmp_upload_dir", "reload_engine")), line
    assert kept


# ---- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "gunicorn.conf.py"
    path.write_text("worker_class = 'gthread'\n")
    return path


def test_it_prints(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "gunicorn.conf.py"]) == 0
    out, err = capsys.readouterr()
    assert code_of(out) == ['worker_class = "threads"']
    assert out.startswith("# gunicorn.conf.py for wsgiserv")
    assert err == ""


@pytest.mark.parametrize("flags", [["-o", "new.py"], ["--output=new.py"], ["--output", "new.py"]])
@pytest.mark.parametrize("is_first", [True, False])
def test_it_writes_a_new_file(file: Path, capsys: pytest.CaptureFixture[str], flags: list[str], is_first: bool) -> None:
    argv = [*flags, file.name] if is_first else [file.name, *flags]
    assert main(["migrate", *argv]) == 0
    assert code_of((file.parent / "new.py").read_text()) == ['worker_class = "threads"']
    assert main(["migrate", *argv]) == 2, "it overwrites nothing"
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(r"wsgiserv: error: WS1047 cannot write new.py: File exists. Accepted: ", err)


def test_values_that_are_refused_are_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("bind = '8000'\nworkers = 0\n")
    assert main(["migrate", file.name]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [re.match(r"wsgiserv: warning: gunicorn.conf.py line (\d): (\w+) = ", line)[1] for line in lines] == [  # type: ignore[index]
        "1",
        "2",
    ]


FAULTS: dict[str, tuple[list[str], str]] = {
    "nothing": ([], r"WS1045 wsgiserv migrate: no file is named\. .*wsgiserv migrate:app"),
    "two files": (["a.py", "b.py"], r"WS1045 .*2 files are named: a\.py b\.py\. Accepted: "),
    "a flag": (["--", "-o"], r"WS1046 cannot read -o: No such file"),
    "no value": (["-o"], r"WS1045 .*'-o' is no flag of it, or its value is missing"),
    "another flag": (["a.py", "--fast"], r"WS1045 .*'--fast'"),
    "missing": (["none.py"], r"WS1046 cannot read none\.py: No such file or directory\. Accepted: "),
    "a directory": (["."], r"WS1046 cannot read \.: Is a directory"),
    "not Python": (["broken.py"], r"WS1046 cannot read broken\.py, line 2: it is not Python: .* Accepted: "),
    "bytes": (["bytes.py"], r"WS1046 cannot read bytes\.py"),
    "a null byte": (["null.py"], r"WS1046 cannot read null\.py"),
    "an unknown encoding": (["encoding.py"], r"WS1046 cannot read encoding\.py"),
    "a directory that is missing": (["-o", "nowhere/x.py", "gunicorn.conf.py"], r"WS1047 cannot write nowhere/x\.py"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(file: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments, pattern = FAULTS[name]
    (file.parent / "broken.py").write_text("workers = 1\nbind = (\n")
    (file.parent / "bytes.py").write_bytes(b"x = '\xff'\n")
    (file.parent / "null.py").write_bytes(b"x = 1\0\n")
    (file.parent / "encoding.py").write_bytes(b"# coding: martian\n")
    assert main(["migrate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(f"wsgiserv: error: {pattern}", err), err


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main(["migrate", flag]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: wsgiserv migrate")
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize(
    ("data", "start"),
    [
        (b"# coding: latin-1\nlogfile = '\xe9'\n", b"# coding: latin-1\n# "),
        (b"\n# coding: latin-1\nlogfile = '\xe9'\n", b"\n# coding: latin-1\n# "),
        (b"\xef\xbb\xbfworkers = 1\r\nlogfile = '\xc3\xa9'\r\n", b"# "),
    ],
)
def test_the_encoding_stays(file: Path, data: bytes, start: bytes) -> None:
    file.write_bytes(data)
    assert main(["migrate", "-o", "new.py", file.name]) == 0
    made = (file.parent / "new.py").read_bytes()
    assert made.startswith(start)
    assert b"\r" not in made
    names: dict[str, Any] = {}
    exec(compile(made, "new.py", "exec"), names)
    assert names["errorlog"] == "é"


@pytest.mark.parametrize("argv", ["migrate:app", "migrate -w 4", "-w 4 migrate", "migrate --reload"])
def test_an_application_of_this_name_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*argv.split(), "--print-config"]) == 0
    assert re.search(r"wsgi_app\s+= 'migrate", capsys.readouterr().out)
