# A file that takes what all services share, and changes some of it.
#: get /

from base_settings import *  # noqa: F403

from record import note

timeout = 50
access_log_format = "service %(m)s %(U)s"


def when_ready(server):
    note("ready", server.cfg.timeout)
