"""The rule: an environment file's lines are read as dotenv, compose and systemd read them, and as docs/deployment.md
says where these differ."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cases import check_each

from wsgiserv.config.env_file import parse_env_file
from wsgiserv.config.file import last_read
from wsgiserv.config.loader import Loaded, collect, load
from wsgiserv.config.present import config_text
from wsgiserv.errors import ConfigError


@pytest.fixture(autouse=True)
def _same_import_state() -> Iterator[None]:
    path, read = list(sys.path), dict(last_read)
    yield
    sys.path[:] = path
    last_read.clear()
    last_read.update(read)
    sys.modules.pop("__config__", None)


# ---- the syntax --------------------------------------------------------------------------------------------

# Each line alone, with the variables that it gives.
_LINES = {
    "plain": ("A=1", {"A": "1"}),
    "no newline needed, Windows' ends": ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
    "empty value": ("A=", {"A": ""}),
    "empty quoted value": ("A=''\nB=\"\"", {"A": "", "B": ""}),
    "export": ("export A=1\nexport\tB=2", {"A": "1", "B": "2"}),
    "export as a name": ("export=1", {"export": "1"}),
    "blanks around": ("  A = 1 2  \n\tB=\t3", {"A": "1 2", "B": "3"}),
    "comments": ("# c\n ; c\n\n   \nA=1\n  # A=2", {"A": "1"}),
    "comment behind a value": ("A=1 # c\nB=1\t#c\nC= # c", {"A": "1", "B": "1", "C": ""}),
    "hash within a value": ("A=a#b\nB=#fff\nC=http://h/#x", {"A": "a#b", "B": "#fff", "C": "http://h/#x"}),
    "equals signs": ("A=b=c=\nURL=http://h/?a=b&c=d", {"A": "b=c=", "URL": "http://h/?a=b&c=d"}),
    "a backslash does not keep a single quote open": (r"A='a\' # c", {"A": "a\\"}),
    "single quotes": (r"A=' a \n $B # '  # c", {"A": r" a \n $B # "}),
    "double quotes": (r'A=" a\tb\n\"c\" \\ \$D # "', {"A": ' a\tb\n"c" \\ $D # '}),
    "other escapes stay": (r'A="\d+ \x"', {"A": r"\d+ \x"}),
    "backslashes without quotes": ("A=C:\\new\\\nB=2", {"A": "C:\\new\\", "B": "2"}),
    "quotes within": ('A=it\'s\nB=a"b"', {"A": "it's", "B": 'a"b"'}),
    "several lines": ("A='1\n2=3\n'\nB=\"x\ny\"\nC=3", {"A": "1\n2=3\n", "B": "x\ny", "C": "3"}),
    "no expansion": ("A=$HOME ${HOME} `id` $(id)", {"A": "$HOME ${HOME} `id` $(id)"}),
    "names": ("_a=1\na.b-c=2\nA1=3", {"_a": "1", "a.b-c": "2", "A1": "3"}),
    "the last one of a name": ("A=1\nA=2", {"A": "2"}),
    "not ASCII": ("A=dépôt\nB='日本'", {"A": "dépôt", "B": "日本"}),
    "nothing": ("", {}),
    "only a comment": ("# no newline", {}),
}


def variables(text: str) -> dict[str, str]:
    found, faults = parse_env_file(text, ".env")
    assert not faults, faults
    return {each.name: each.value for each in found}


def test_lines() -> None:
    def check(case: tuple[str, Mapping[str, str]]) -> None:
        assert variables(case[0]) == case[1]

    check_each(_LINES, check)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("A=1\nnonsense\nB=2", 2, "is not NAME=value"),
        ("A=1\n\n# c\n1A=2", 4, "is not NAME=value"),
        ("A B=2", 1, "is not NAME=value"),
        ("export A", 1, "is not NAME=value"),
        ("=1", 1, "is not NAME=value"),
        ("A: 1", 1, "is not NAME=value"),
        ("A='1", 1, "A has a quote that does not close"),
        ("B=1\nA=\"1\nC='2'\n", 2, "A has a quote that does not close"),
        ("A='1'2", 1, "A has text behind the closing quote"),
        ("A='1'#2", 1, "A has text behind the closing quote"),
        ("A='x\ny'\nB=\"1\" 2", 3, "B has text behind the closing quote"),
        ("A=a\0b", 1, "A has a NUL character"),
    ],
)
def test_a_bad_line_is_a_fault_with_file_line_and_what_is_accepted(text: str, line: int, words: str) -> None:
    _, [fault] = parse_env_file(text, "conf/.env")
    assert str(fault).startswith(f"WS1066 conf/.env line {line}: {words}. Accepted: NAME=value")


def test_the_lines_around_a_bad_one_are_read_and_no_value_is_shown() -> None:
    found, faults = parse_env_file("A=1\nhunter2\nB='x' hunter2\nC=3", ".env")
    assert [each.name for each in found] == ["A", "C"]
    assert len(faults) == 2
    assert "hunter2" not in "".join(map(str, faults))


def test_a_large_file_takes_no_time() -> None:
    assert len(variables("".join(f"N{n}={'x ' * 50}\n" for n in range(3000)))) == 3000
    assert parse_env_file("A=" + " " * 50_000 + "x" + "\n #" * 50_000, ".env")[0]


# ---- in the loader -------------------------------------------------------------------------------------------


def run(directory: Path, *argv: str, file: str, **environ: str) -> tuple[Loaded, dict[str, str]]:
    """Load with ``file`` as .env; return the configuration, and the variables for the process."""
    (directory / ".env").write_text(file)
    put: dict[str, str] = {}
    loaded = collect(["--env-file", ".env", *argv], environ, str(directory), put_variables=put.update)
    loaded.raise_faults()
    return loaded, put


def test_it_gives_settings_and_the_applications_environment(tmp_path: Path) -> None:
    loaded, put = run(tmp_path, file="WSGISERV_TIMEOUT=2m\nPORT=5000\nDATABASE_URL=x\nWSGISERV_CMD_ARGS='-w 3'\n")
    settings, sources = loaded.settings, loaded.sources
    assert (settings.timeout, settings.bind, settings.workers) == (120, ("0.0.0.0:5000",), 3)
    assert sources["timeout"] == "WSGISERV_TIMEOUT in .env line 1"
    assert sources["bind"] == "PORT in .env line 2"
    assert sources["workers"] == "-w in WSGISERV_CMD_ARGS in .env line 4"
    assert put == {
        "WSGISERV_TIMEOUT": "2m", "PORT": "5000", "DATABASE_URL": "x", "WSGISERV_CMD_ARGS": "-w 3"
    }  # fmt: skip


def test_the_environment_wins_over_the_file_also_where_it_is_empty(tmp_path: Path) -> None:
    file = "PORT=5000\nA=file\nB=file\nWSGISERV_WORKERS=3\nWSGISERV_CMD_ARGS='-t 7'\n"
    loaded, put = run(tmp_path, file=file, A="own", B="", PORT="", WEB_CONCURRENCY="2", WSGISERV_CMD_ARGS="-t 8")
    assert put == {"WSGISERV_WORKERS": "3"}
    assert loaded.settings.bind == ("127.0.0.1:8000",)
    assert loaded.settings.timeout == 8
    assert loaded.settings.workers == 3  # the rank of a name is the same in a file
    assert [each.name for each in loaded.variables if not each.used] == ["PORT", "A", "B", "WSGISERV_CMD_ARGS"]


def test_of_several_files_the_last_wins(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("A=1\nB=1\nA=2\n")
    (tmp_path / "b").write_text("B=2\nC=2\n")
    put: dict[str, str] = {}
    loaded = collect(["--env-file", "a", "--env-file=b"], {}, str(tmp_path), put_variables=put.update)
    assert put == {"A": "2", "B": "2", "C": "2"}
    assert loaded.settings.env_file == ("a", "b")
    assert [each.place for each in loaded.variables if not each.used] == ["a line 1", "a line 2"]


@pytest.mark.parametrize(
    ("argv", "environ", "source"),
    [
        (["--env-file", "x"], {"WSGISERV_ENV_FILE": "no"}, "--env-file on the command line"),
        ([], {"WSGISERV_CMD_ARGS": "--env-file x", "GUNICORN_CMD_ARGS": "--env-file no"}, "in WSGISERV_CMD_ARGS"),
        ([], {"GUNICORN_CMD_ARGS": "--env-file x", "WSGISERV_ENV_FILE": "no"}, "in GUNICORN_CMD_ARGS"),
        ([], {"WSGISERV_ENV_FILE": "x"}, "WSGISERV_ENV_FILE in the environment"),
        ([], {"WSGISERV_ENV_FILE": "y 'x'"}, "WSGISERV_ENV_FILE in the environment"),
    ],
)
def test_it_is_named_by_flag_arguments_or_variable(
    tmp_path: Path, argv: list[str], environ: dict[str, str], source: str
) -> None:
    (tmp_path / "x").write_text("WSGISERV_TIMEOUT=3\n")
    (tmp_path / "y").write_text("WSGISERV_TIMEOUT=4\n")
    loaded = load(argv, environ, str(tmp_path))
    assert loaded.settings.timeout == 3
    assert loaded.sources["env_file"].endswith(source)


def test_in_a_configuration_file_it_has_no_effect_and_a_line_says_why(tmp_path: Path) -> None:
    (tmp_path / "gun.py").write_text("env_file = '.env'\n")
    loaded = load(["-c", "gun.py"], {}, str(tmp_path))
    assert loaded.settings.env_file == ()
    [notice] = loaded.notices
    assert "WS1069 env_file (gun.py line 1) is not used" in notice
    assert "--env-file" in notice


def test_it_may_name_the_configuration_file_which_finds_its_variables_put(tmp_path: Path) -> None:
    (tmp_path / "gun.py").write_text("import sys\nworkers = sys.put_for_test['N']\n")
    (tmp_path / ".env").write_text("WSGISERV_CONFIG=gun.py\nN=4\n")
    sys.put_for_test = {}  # type: ignore[attr-defined]
    try:
        put = sys.put_for_test.update  # type: ignore[attr-defined]
        loaded = collect([], {"WSGISERV_ENV_FILE": ".env"}, str(tmp_path), put_variables=put)
    finally:
        del sys.put_for_test  # type: ignore[attr-defined]
    assert loaded.faults == []
    assert loaded.settings.workers == 4


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("WSGISERV_ENV_FILE=other", "WS1067 .env line 1: WSGISERV_ENV_FILE names an environment file"),
        ("\nWSGISERV_CMD_ARGS='--env-file other'", "WS1067 .env line 2: WSGISERV_CMD_ARGS names an environment file"),
        ("nonsense", "WS1066 .env line 1: is not NAME=value"),
        ('WSGISERV_CMD_ARGS="-n \'x"', 'WS1005 WSGISERV_CMD_ARGS = "-n \'x" in .env line 1 cannot be split'),
        ("WSGISERV_WORKERS=lots", "WS1010 workers = 'lots' (WSGISERV_WORKERS in .env line 1) is not accepted"),
        ("WSGISERV_WROKERS=2\nPORT=http", "WS1010 bind = '0.0.0.0:http' (PORT in .env line 2)"),
    ],
)
def test_faults(tmp_path: Path, file: str, words: str) -> None:
    (tmp_path / ".env").write_text(file)
    with pytest.raises(ConfigError) as caught:
        load(["--env-file", ".env"], {}, str(tmp_path))
    [fault] = caught.value.faults
    assert words in fault


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"A=d\xe9p\xf4t\n")
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfWSGISERV_WORKERS=2\n")
    with pytest.raises(ConfigError) as caught:
        load(["--env-file", "none", "--env-file", ".", "--env-file", "latin"], {}, str(tmp_path))
    none, directory, latin = caught.value.faults
    assert none.startswith(f"WS1064 cannot read the environment file {tmp_path / 'none'}: No such file")
    assert directory.startswith("WS1064")
    assert latin.startswith(f"WS1065 the environment file {tmp_path / 'latin'} is not UTF-8 (byte 3)")
    assert load(["--env-file", "bom"], {}, str(tmp_path)).settings.workers == 2


def test_after_a_fault_the_configuration_file_is_not_run_and_nothing_is_put(tmp_path: Path) -> None:
    """It would fail for want of the variables, and be told as a second mistake."""
    (tmp_path / "wsgiserv.conf.py").write_text("import os\nos.environ['ONLY_IN_THE_ENV_FILE']\n")
    (tmp_path / ".env").write_text("ONLY_IN_THE_ENV_FILE=1\nnonsense\n")
    put: list[object] = []
    loaded = collect(["--env-file", ".env"], {}, str(tmp_path), put_variables=put.append)
    assert (len(loaded.faults), put) == (1, [])


def test_the_files_are_watched_by_reload(tmp_path: Path) -> None:
    (tmp_path / "wsgiserv.conf.py").write_text("")
    run(tmp_path, file="A=1\n")
    assert set(last_read) == {str(tmp_path / ".env"), str(tmp_path / "wsgiserv.conf.py")}
    load([], {}, str(tmp_path))
    assert set(last_read) == {str(tmp_path / "wsgiserv.conf.py")}


def test_print_config_has_the_variables(tmp_path: Path) -> None:
    loaded, _ = run(tmp_path, file="A=1\nAPI_TOKEN=hunter2\nOWN=2\n", OWN="1")
    text = config_text(loaded.settings, loaded.sources, loaded.variables)
    assert "# A         = '1' (.env line 1)\n" in text
    assert "# API_TOKEN = '***' (.env line 2)\n" in text
    assert "# OWN       = '2' (.env line 3): not used" in text
    assert "# *** stands for a value that looks like a secret" in text
    assert "hunter2" not in text
