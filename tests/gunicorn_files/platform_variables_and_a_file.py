# WEB_CONCURRENCY and PORT are set, and the file says otherwise.
#: env WEB_CONCURRENCY=3
#: env PORT=1
#: bind file
#: get /where
#: wait ready

from record import note

bind = "127.0.0.1:0"
workers = 1


def when_ready(server):
    note("ready", server.cfg.workers, server.cfg.address)
