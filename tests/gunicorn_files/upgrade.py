# USR2 starts the next master: pre_exec runs before it.
#: get /
#: signal USR2
#: wait pre_exec
#: log Forked child, re-executing

from record import note

workers = 1
pidfile = "shop.pid"


def pre_exec(server):
    note("pre_exec", server.pid > 1)
    server.log.info("Forked child, re-executing.")
