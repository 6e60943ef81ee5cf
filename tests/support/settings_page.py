"""Keeps the facts in docs/settings.md in step with the declarations: ``python -m tests.support.settings_page``.

The prose is written in the page. It stays with its setting, whose first paragraphs are made anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.present import default_text
from wsgiserv.config.setting import SECTIONS, Setting, show
from wsgiserv.config.settings import SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

_IGNORED = """\
## Settings of gunicorn that are accepted and not used

Each of these gets one line in the log at the start, unless its value is gunicorn's default.

| gunicorn's setting | flags | what to do here |
|---|---|---|
"""


def updated(page: str) -> str:
    """Return the page with the facts of all settings, the same on every host."""
    top, _, _ = page.partition(f"## {SECTIONS[0]}\n")
    prose = _prose(page)
    parts = [top]
    for section in SECTIONS:
        parts.append(f"## {section}\n\n")
        for setting in SETTINGS.values():
            if setting.section == section:
                parts.append("\n\n".join([*_facts(setting), *prose.pop(setting.name, [])]) + "\n\n")
    if prose:
        raise ValueError(f"docs/settings.md has entries of no setting: move their text: {', '.join(prose)}")
    rows = [
        f"| `{ignored.name}`{' (old)' if ignored.old else ''} "
        f"| {', '.join(f'`{flag}`' for flag in ignored.flags) or '-'} | {ignored.instead} |\n"
        for ignored in GUNICORN_ONLY.values()
    ]
    return "".join([*parts, _IGNORED, *rows])


def _prose(page: str) -> dict[str, list[str]]:
    """Return the paragraphs of each entry that are written by hand."""
    found = {}
    for section in re.split(r"^## ", page, flags=re.MULTILINE):
        made = 3 if section.startswith("Hooks") else 4
        for entry in re.split(r"^(?=### `)", section, flags=re.MULTILINE)[1:]:
            paragraphs = entry.strip().split("\n\n")
            found[paragraphs[0].removeprefix("### ").strip("`")] = paragraphs[made:]
    return found


def _facts(setting: Setting) -> list[str]:
    shown = f"`{show(setting.default)}`" if not setting.show_default else default_text(setting)
    flags = [f"`{flag} {setting.metavar}`" if setting.metavar else f"`{flag}`" for flag in setting.flags]
    facts = [f"Flags: {', '.join(flags)}." if flags else "No flag."]
    facts.append(f"Default: {shown}.")
    if setting.environment:
        facts.append(f"Environment: `{setting.environment}`.")
    if setting.old_names:
        facts.append(f"Old name: {', '.join(f'`{name}`' for name in setting.old_names)}.")
    if setting.aliases:
        facts.append(f"Also named: {', '.join(f'`{alias}`' for alias in setting.aliases)}.")
    if not setting.in_file:
        facts.append("Not in a configuration file.")
    signature = re.search(r"\(.*?\)", setting.accepts) if setting.section == "Hooks" else None
    if signature:
        facts.append(f"Called as `{signature[0]}`.")
    accepts = [] if signature else [f"Accepts {setting.accepts}."]
    return [f"### `{setting.name}`", setting.help, " ".join(facts), *accepts]


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
