"""Percent-decoding of paths.

Owns: `decoded`.
Must not know: what a path means, or where it came from.

It is not `urllib.parse`'s: that imports `ipaddress`, and is 0.5 MB in every worker.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["decoded"]

_ENCODED: Final = re.compile("%([0-9A-Fa-f]{2})")


def decoded(path: str) -> str:
    """Return ``path`` with each ``%XX`` replaced by its octet (RFC 3986 §2.1), as a latin-1 string (PEP 3333).

    A ``%`` that two hexadecimal digits do not follow stays as it is.

    Args:
        path: of characters up to U+00FF, each standing for an octet.
    """
    return _ENCODED.sub(_octet, path)


def _octet(match: re.Match[str]) -> str:
    return chr(int(match[1], 16))
