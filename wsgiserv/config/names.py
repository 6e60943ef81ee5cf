"""Finds the setting that a name in a configuration file stands for."""

from __future__ import annotations

from collections.abc import Sequence

from wsgiserv.config.settings import SETTINGS
from wsgiserv.wording import nearest

BY_ALIAS = {alias: name for name, setting in SETTINGS.items() for alias in setting.aliases}
BY_OLD_NAME = {old: name for name, setting in SETTINGS.items() for old in setting.old_names}
# Flags with another name than their setting's, as a file may have them: preload, access_logfile. Shorter ones (env,
# name, pid) are too often the file's own.
_BY_FLAG = {
    name: setting.name
    for setting in SETTINGS.values()
    for flag in (*setting.flags, *setting.hidden_flags)
    if len(name := flag.lstrip("-").replace("-", "_")) > 6 and name not in SETTINGS
}


def meant_by(name: str, raw: object) -> Sequence[str]:
    """Return the setting that was meant by a name which is none, as a list; empty for a variable of the file's own."""
    # Constants, private names, classes and functions are the file's own; a setting's value is plain data.
    is_data = issubclass(type(raw), (str, bytes, int, float, list, tuple, dict, set, type(None)))
    if not is_data or not name.islower() or name.startswith("_"):
        return []
    # 0.8: a file has variables of its own, and a notice about one of these is noise at each start.
    return [_BY_FLAG[name]] if name in _BY_FLAG else nearest(name, [*SETTINGS, *BY_ALIAS], 1, 0.8)
