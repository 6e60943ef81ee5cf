"""Words for numbers.

Owns: `counted`.
Must not know: what is counted.
"""

from __future__ import annotations

__all__ = ["counted"]


def counted(count: int, thing: str, verb_of_one: str = "", verb: str = "") -> str:
    """Return ``1 worker``, ``2 workers``; with verbs ``1 worker serves``, ``2 workers serve``.

    Args:
        count: how many.
        thing: the noun in the singular; its plural ends with an s.
        verb_of_one, verb: what follows, in the singular and in the plural.
    """
    words = f"{count} {thing} {verb_of_one}" if count == 1 else f"{count} {thing}s {verb}"
    return words.rstrip()
