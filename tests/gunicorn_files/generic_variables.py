# Every variable GUNICORN_<NAME> becomes a setting, by a loop over the environment.
#: env GUNICORN_TIMEOUT=77
#: env GUNICORN_ACCESSLOG=-
#: env GUNICORN_ACCESS_LOG_FORMAT=loop %(m)s %(U)s
#: get /
#: wait timeout

import os

from record import note

for k, v in os.environ.items():
    if k.startswith("GUNICORN_") and k != "GUNICORN_CMD_ARGS":
        key = k.split("_", 1)[1].lower()
        locals()[key] = v


def when_ready(server):
    note("timeout", server.cfg.timeout)
