"""Packets of the uwsgi protocol."""

from __future__ import annotations

import struct


def packet(**variables: str) -> bytes:
    """Return the packet of these variables."""
    texts = [text.encode("latin-1") for pair in variables.items() for text in pair]
    block = b"".join(struct.pack("<H", len(text)) + text for text in texts)
    return struct.pack("<BHB", 0, len(block), 0) + block
