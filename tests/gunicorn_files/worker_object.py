# What the worker's hooks find on the worker.
#: get /
#: get /
#: wait init
#: wait 2 nr

import os

from record import note

workers = 1
timeout = 40
max_requests = 500
max_requests_jitter = 0


def post_fork(server, worker):
    note("fork", worker.age, worker.pid == os.getpid(), worker.ppid == os.getppid(), worker.booted, worker.alive)


def post_worker_init(worker):
    note("init", worker.app.callable is worker.app.wsgi(), worker.wsgi is worker.app.callable, worker.app.app_uri)
    note("app", worker.app.cfg.workers, callable(worker.wsgi), worker.app.wsgi().__name__)
    worker.tmp.notify()
    worker.notify()
    note("numbers", worker.nr, worker.max_requests, worker.timeout, len(worker.sockets), worker.tmp.last_update() > 0)


def post_request(worker, req, environ, resp):
    note("nr", worker.nr, worker.alive)
