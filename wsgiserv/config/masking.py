"""Hides values that look like secrets, for --print-config, errors, the log and wsgiservctl."""

from __future__ import annotations

import re
from typing import Any, Final

MASK: Final = "***"

_SECRET_NAME: Final = re.compile(r"PASSWORD|PASSWD|PASSPHRASE|_PWD$|SECRET|TOKEN|KEY|CREDENTIAL|DSN", re.IGNORECASE)
# A path to a secret (KEYFILE, DB_PASSWORD_FILE of Docker's secrets) is none, and helps to find a mistake.
_PATH_NAME: Final = re.compile(r"FILE(?:NAME|S)?$", re.IGNORECASE)
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][\w.-]*)\s*=(?!=)")
# To the last @: a password may have one, and a slash, in spite of RFC 3986 (section 3.2.1).
_URL_PASSWORD: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s/?#@:]*):\S*@")


def is_secret_name(name: str) -> bool:
    """Tell whether a variable of this name probably holds a secret."""
    return bool(_SECRET_NAME.search(name)) and not _PATH_NAME.search(name)


def mask_variable(name: str, value: str) -> str:
    """Return a variable's value, or its mask."""
    return MASK if value and is_secret_name(name) else mask_text(value)


def mask_text(text: str) -> str:
    """Return a text without passwords in URLs, and without what follows ``NAME=`` for a secret's name."""
    for match in _ASSIGNMENT.finditer(text):
        if is_secret_name(match[1]) and match.end() < len(text):
            # All the rest: where the value ends depends on quotes that may be part of it.
            text = text[: match.end()] + MASK
            break
    return _URL_PASSWORD.sub(rf"\1:{MASK}@", text)


def mask(value: Any) -> Any:
    """Return a setting's value with the secrets in its texts masked; dictionaries by their keys, too."""
    # By its type: an odd object of a configuration file may do anything when it is looked at.
    if type(value) is str:
        return mask_text(value)
    if type(value) in (list, tuple):
        return type(value)(map(mask, value))
    if type(value) is dict:
        return {key: _mask_item(key, item) for key, item in value.items()}
    return value


def _mask_item(key: object, item: object) -> object:
    is_secret = type(key) is str and is_secret_name(key) and item not in (None, "") and type(item) is not dict
    return MASK if is_secret else mask(item)
