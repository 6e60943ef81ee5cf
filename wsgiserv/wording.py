"""Builds sentences: counts, and the nearest names to a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def counted(count: int, thing: str, verb_of_one: str = "", verb: str = "") -> str:
    """Return ``1 worker``, ``2 workers``; with verbs ``1 worker serves``, ``2 workers serve``.

    Args:
        count: the number.
        thing: the noun in the singular; its plural ends with an s.
        verb_of_one, verb: added in the singular and in the plural.
    """
    words = f"{count} {thing} {verb_of_one}" if count == 1 else f"{count} {thing}s {verb}"
    return words.rstrip()


def enumeration(words: Sequence[str]) -> str:
    """Return ``A``, ``A and B``, ``A, B and C``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def kind_of(value: object) -> str:
    """Return the type of a value with its article: ``a list``, ``an int``."""
    # By type(): a proxy looks its __class__ up in another object.
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'AEIOaeio' else 'a'} {kind}"


def mebibytes(count: int) -> str:
    """Return a number of bytes as ``12.3 MiB``."""
    return f"{count / (1 << 20):.1f} MiB"


def nearest(name: str, known: Iterable[str], limit: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the known names that resemble a mistyped one, best first.

    Args:
        name: the name as typed.
        known: the right names.
        limit: the most names to return.
        cutoff: the least resemblance, from 0 (any) to 1 (equal).
    """
    from difflib import get_close_matches  # only after a mistake

    return get_close_matches(name, list(known), limit, cutoff)


def did_you_mean(choices: Iterable[str]) -> str:
    """Return ``Did you mean A or B?``; an empty text without choices. Quoting is the caller's."""
    text = " or ".join(choices)
    return f"Did you mean {text}?" if text else ""
