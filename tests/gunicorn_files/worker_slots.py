# Each worker gets a number in pre_fork, which it finds later, and which is free again after its exit.
#: get /
#: worker KILL
#: wait child_exit
#: replaced
#: get /
#: any-order

from record import note

workers = 1
free = list(range(1, 9))


def pre_fork(server, worker):
    worker.slot = free.pop(0)
    note("pre_fork", worker.slot)


def post_fork(server, worker):
    note("post_fork", worker.slot)


def post_worker_init(worker):
    note("post_worker_init", worker.slot)


def worker_exit(server, worker):
    note("worker_exit", worker.slot)


def child_exit(server, worker):
    note("child_exit", worker.slot)
    free.insert(0, worker.slot)
