# A worker that hangs is aborted: the hook says where it was.
#: worker ABRT
#: replaced
#: get /
#: log worker received SIGABRT signal

import traceback

from record import note

timeout = 20


def worker_abort(worker):
    worker.log.info("worker received SIGABRT signal")
    note("worker_abort", worker.pid > 1, bool(traceback.format_stack()))


def child_exit(server, worker):
    note("child_exit", worker.pid > 1)
