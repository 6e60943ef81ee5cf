# A hook ends another worker with kill_worker, by what server.WORKERS holds.
#: remember
#: signal HUP
#: wait killed
#: replaced
#: get /

import signal

from record import note

workers = 1


def on_reload(server):
    for pid, worker in list(server.WORKERS.items()):
        note("killed", worker.age, worker.pid == pid, worker.aborted)
        server.kill_worker(pid, signal.SIGTERM)
