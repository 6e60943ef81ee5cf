"""What all tests share: the environment of whoever runs them must not configure anything."""

from __future__ import annotations

import os

for _name in ("WSGISERV_CMD_ARGS", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS"):
    os.environ.pop(_name, None)
