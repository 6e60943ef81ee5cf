"""The rule: --help, --print-config and docs/settings.md say all that is declared, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgiserv.config.docs import settings_page
from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.loader import load
from wsgiserv.config.present import config_text, help_text
from wsgiserv.config.setting import Section
from wsgiserv.config.settings import SETTINGS, Settings

ROOT = Path(__file__).parents[3]


def test_the_page_in_the_tree_is_the_generated_one() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == settings_page(), "run: python -m wsgiserv.config.docs > docs/settings.md"


def test_the_page_has_every_setting_and_every_ignored_one() -> None:
    page = settings_page()
    for name in SETTINGS:
        assert f"### `{name}`\n" in page
    for name in GUNICORN_ONLY:
        assert f"| `{name}`" in page


def test_help_has_every_flag_in_80_columns() -> None:
    text = help_text()
    words = text.replace(",", " ").split()
    for setting in SETTINGS.values():
        for flag in setting.flags:
            assert flag in words
    assert [line for line in text.splitlines() if len(line) > 80] == []
    for section in Section:
        assert f"\n{section}:\n" in text or section == "Hooks"


def test_help_leaves_out_what_is_accepted_for_old_command_lines() -> None:
    assert "--http-parser" not in help_text()
    assert "field_size" not in help_text()


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_every_declaration_is_whole(setting: object) -> None:
    declared = SETTINGS[setting.name]  # type: ignore[attr-defined]
    assert declared.section in Section
    assert declared.help.endswith(".")
    assert declared.accepts
    assert "\n" not in declared.help
    assert bool(declared.metavar) == (bool(declared.flags) and declared.kind.arity != "none")


def test_no_flag_is_declared_twice() -> None:
    flags = [flag for s in SETTINGS.values() for flag in (*s.flags, *s.hidden_flags, *s.off_flags)]
    flags += [flag for ignored in GUNICORN_ONLY.values() for flag in ignored.flags]
    assert len(flags) == len(set(flags))
    assert not set(SETTINGS) & set(GUNICORN_ONLY)


def test_every_default_is_a_value_that_its_parser_accepts() -> None:
    settings = Settings()
    for name, declared in SETTINGS.items():
        value = getattr(settings, name)
        if value is not None and value != ():
            assert declared.parse(value) == value


@pytest.mark.parametrize(
    ("argv", "source"),
    [
        ([], "default, not set: forwarded headers of others are passed on"),
        (["--forwarded-allow-ips", "127.0.0.1,::1"], "--forwarded-allow-ips on the command line"),
    ],
)
def test_print_config_tells_what_is_not_set_from_a_default_by_hand(
    argv: list[str], source: str, tmp_path: Path
) -> None:
    loaded = load(argv, {}, str(tmp_path))
    lines = config_text(loaded.settings, loaded.sources).splitlines()
    [line] = [line for line in lines if line.startswith("forwarded_allow_ips ")]
    assert line.partition(" = ")[2].partition(" # ")[0].rstrip() == "['127.0.0.1', '::1']"
    assert line.partition(" # ")[2] == source


def test_print_config_shows_value_and_source_of_everything(tmp_path: Path) -> None:
    loaded = load(["-w", "3", "--limit-request-body", "0"], {"PORT": "5000"}, str(tmp_path))
    lines = config_text(loaded.settings, loaded.sources).splitlines()
    rows = {line.split(" = ")[0].rstrip(): line.split(" = ", 1)[1] for line in lines if " = " in line}
    assert set(rows) == set(SETTINGS)
    assert rows["workers"].split() == ["3", "#", "-w", "on", "the", "command", "line"]
    assert rows["bind"].split()[:3] == ["['0.0.0.0:5000']", "#", "PORT"]
    assert rows["timeout"].split() == ["30", "#", "default"]
    assert rows["limit_request_body"].split()[0] == "0"
    positions = {line.index(" = ") for line in lines if " = " in line}
    assert len(positions) == 1
