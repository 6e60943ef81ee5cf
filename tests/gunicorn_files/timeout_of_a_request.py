# A request longer than timeout: worker_abort runs, the worker is replaced.
#: remember
#: get /hang
#: replaced
#: get /
#: wait worker_abort

from record import note

workers = 1
timeout = 1


def worker_abort(worker):
    note("worker_abort in a request", worker.nr)
