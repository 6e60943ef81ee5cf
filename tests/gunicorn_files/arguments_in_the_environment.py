# GUNICORN_CMD_ARGS goes before the file, flags before it.
#: env GUNICORN_CMD_ARGS=--access-logformat='args %(U)s' --timeout 90 --graceful-timeout 70
#: args --graceful-timeout 60
#: get /
#: wait ready

from record import note

accesslog = "-"
access_log_format = "file %(U)s"
timeout = 40
graceful_timeout = 50


def when_ready(server):
    note("ready", server.cfg.timeout, server.cfg.graceful_timeout)
