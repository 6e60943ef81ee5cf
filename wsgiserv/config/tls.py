"""Whether the settings turn TLS on.

Owns: `speaks_tls`.
Must not know: certificates, contexts, sockets.
"""

from __future__ import annotations

__all__ = ["speaks_tls"]


def speaks_tls(settings: object) -> bool:
    """Whether the listeners speak TLS: there is a certificate, or a hook that makes the context."""
    return bool(getattr(settings, "certfile", None)) or getattr(settings, "ssl_context", None) is not None
