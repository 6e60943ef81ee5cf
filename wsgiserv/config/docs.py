"""Makes docs/settings.md from the table: ``python -m wsgiserv.config.docs > docs/settings.md``."""

from __future__ import annotations

from wsgiserv.config.environment import variables_of
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

Later wins:

1. defaults;
2. the variables of platforms, as gunicorn has them: `PORT`, `WEB_CONCURRENCY`, `FORWARDED_ALLOW_IPS`, `SENDFILE`. One
   with an unusable value is ignored, with a line in the log, when anything below gives the setting;
3. `WSGISERV_<NAME>`, a variable for each setting: `WSGISERV_TIMEOUT=2m`;
4. the configuration file;
5. `GUNICORN_CMD_ARGS`, then `WSGISERV_CMD_ARGS`, both with flags as on a command line;
6. flags.

`wsgiserv --print-config` shows every value and where it came from. Values that look like secrets are shown as `***`:
passwords in URLs, and what has a name with `PASSWORD`, `SECRET`, `TOKEN`, `KEY`, `CREDENTIAL` or `DSN` in it.

**Variables.** The name is the setting's, in upper case behind `WSGISERV_`; an alias and a long flag work as well
(`WSGISERV_LOG_LEVEL` is `--log-level`, `loglevel`). The text is what the flag takes; a switch is `true` or `false`.
Where a flag may be repeated, the values are separated by blanks, with quotes as in a shell:
`WSGISERV_BIND="127.0.0.1:8000 unix:/run/shop.sock"`. A dictionary is a JSON object. An empty variable is as if not
set. `WSGISERV_CONFIG` names the configuration file. Hooks have no variable, since they are functions. A variable that
begins with `WSGISERV_` and is no setting's gets a line in the log. All of them can stand in a file: see `env_file`.

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
    variables = [*variables_of(setting)[:1], *([setting.environment] if setting.environment else [])]
    if variables:
        facts.append(f"Environment: {', else '.join(f'`{each}`' for each in variables)}.")
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
