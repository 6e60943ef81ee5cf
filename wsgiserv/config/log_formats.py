"""Names the formats of the access log that have a name."""

from __future__ import annotations

from typing import Final

COMMON: Final = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s'
COMBINED: Final = COMMON + ' "%(f)s" "%(a)s"'
NAMED_FORMATS: Final = {"common": COMMON, "combined": COMBINED}
