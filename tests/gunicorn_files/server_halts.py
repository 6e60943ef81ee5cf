# A hook stops the server in good order: too many workers have died.
#: distinct
#: get /
#: worker KILL
#: ends
#: log too many deaths

from record import note

deaths = []


def child_exit(server, worker):
    deaths.append(worker.pid)
    note("death", len(deaths))
    if len(deaths) == 1:
        server.log.error("too many deaths")
        server.halt(reason="too many deaths", exit_status=6)


def on_exit(server):
    note("on_exit")
