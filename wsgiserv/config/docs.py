"""Makes docs/settings.md from the table: ``python -m wsgiserv.config.docs > docs/settings.md``."""

from __future__ import annotations

from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.present import default_text
from wsgiserv.config.setting import Section, Setting, show
from wsgiserv.config.settings import SETTINGS

_TOP = """\
# Settings

<!-- Made by `python -m wsgiserv.config.docs > docs/settings.md`: edit the declarations instead. -->

A setting is given by a flag, by the environment, or by a name in a configuration file, which is Python:

```python
# gun.py, for: wsgiserv -c gun.py hello:app
bind = ["127.0.0.1:8000", "unix:/run/shop.sock"]
workers = "auto"
timeout = "2m"


def post_fork(server, worker):
    server.log.info("worker %s was forked", worker.pid)
```

Later wins: defaults, the configuration file, the environment (`WEB_CONCURRENCY` for `workers` and `PORT` for
`bind`, then `GUNICORN_CMD_ARGS`, then `WSGISERV_CMD_ARGS`, both with flags as on a command line), flags.
`wsgiserv --print-config` shows every value and where it came from.

The configuration is `-c gun.py`, `-c file:gun.py` or `-c python:some.module`; without `-c`,
`./wsgiserv.conf.py`, else `./gunicorn.conf.py`. It is run again on a reload.

- **Durations** are seconds, or text such as `"500ms"`, `"30s"`, `"2m"`, `"1h"`.
- **Sizes** are bytes, or text such as `"512K"`, `"10M"`, `"1GiB"`; the units are powers of 1,024.
- **Switches** are `True` or `False`; a flag turns one on, its `--no-` form off.
- **`None`** in a configuration file leaves a setting as it is.
"""

_IGNORED = """\
## Settings of gunicorn that are accepted and not used

Each of these gets one line in the log at the start, unless its value is gunicorn's default.

| gunicorn's setting | flags | what to do here |
|---|---|---|
"""


def settings_page() -> str:
    """Return the page, in Markdown; the same on every host."""
    parts = [_TOP]
    for section in Section:
        parts.append(f"## {section}\n")
        parts += [_entry(setting) for setting in SETTINGS.values() if setting.section == section]
    rows = [
        f"| `{ignored.name}`{' (old)' if ignored.old else ''} "
        f"| {', '.join(f'`{flag}`' for flag in ignored.flags) or '-'} | {ignored.instead} |"
        for ignored in GUNICORN_ONLY.values()
    ]
    return "\n".join(parts) + "\n" + _IGNORED + "\n".join(rows) + "\n"


def _entry(setting: Setting) -> str:
    default = setting.default
    shown = f"`{show(default)}`" if not setting.show_default else default_text(setting)
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
    accepts = "" if setting.section is Section.HOOKS else f"Accepts {setting.accepts}."
    paragraphs = [f"### `{setting.name}`", setting.help, " ".join(facts), accepts, setting.doc]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


if __name__ == "__main__":
    print(settings_page(), end="")
