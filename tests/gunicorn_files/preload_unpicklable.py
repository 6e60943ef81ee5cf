# pre_fork puts a lock and a number on the worker, with preload_app.
#: get /
#: wait post

import threading

from record import note

preload_app = True


def pre_fork(server, worker):
    worker.lock = threading.Lock()
    worker.number = worker.age


def post_fork(server, worker):
    note("post", worker.number)
