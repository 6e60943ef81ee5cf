"""The limits on request heads that the configuration asks for.

Owns: which settings the parser's `HeadLimits` are made of.
Must not know: the parser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsgiserv.http.head import HeadLimits

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

__all__ = ["head_limits"]


def head_limits(settings: Settings) -> HeadLimits:
    """Return the parser's limits and rules for these settings."""
    return HeadLimits(
        line=settings.limit_request_line,
        fields=settings.limit_request_fields,
        field_size=settings.limit_request_field_size,
        header_map=settings.header_map,
        forwarder_headers=frozenset(name.upper() for name in settings.forwarder_headers),
        secure_scheme_headers=tuple(
            (name.upper(), value) for name, value in settings.secure_scheme_headers.items()
        ),
        root_path=settings.root_path,
    )
