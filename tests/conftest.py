"""What all tests share: the harness of tests/live, and an environment that configures nothing by itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "live"))

for _name in ("WSGISERV_CMD_ARGS", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS"):
    os.environ.pop(_name, None)
