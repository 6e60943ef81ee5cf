"""Words the refusal of a setting's value, without secrets."""

from __future__ import annotations

from typing import Any

from wsgiserv.config.masking import mask, mask_text
from wsgiserv.config.setting import Setting
from wsgiserv.wording import did_you_mean, nearest


def refusal(setting: Setting, raw: object, error: Exception) -> str:
    """Return the predicate of a sentence about a value that its parser has refused."""
    reason = "" if _says_nothing(error) else f": {mask_text(str(error))}"
    return f"is not accepted{reason}.{_nearest_choice(setting, raw)}"


def shown_value(raw: object) -> str:
    """Return a raw value as it is shown in a message."""
    # A configuration file may give a large object by mistake; repr() of a dictionary of a million rows is no message.
    try:
        raw = mask(raw)
        return repr(raw if len(repr(raw)) <= 200 else f"{str(raw)[:200]}...")
    except Exception:  # of an odd object
        return f"<{type(raw).__qualname__}>"


def _nearest_choice(setting: Setting, raw: Any) -> str:
    if not issubclass(type(raw), str):  # not isinstance(): __class__ of a proxy may raise
        return ""
    near = nearest(raw.strip().lower(), setting.kind.choices, limit=1)
    return f" {did_you_mean(map(repr, near))}" if near else ""


def _says_nothing(error: Exception) -> bool:
    """Tell whether the message adds nothing to the accepted values."""
    # int() and float() repeat the value, which the fault has already.
    return not str(error) or str(error).startswith(("invalid literal for int", "could not convert"))
