# What the master's hooks find on the server.
#: get /
#: wait ready
#: wait pre_fork

import os

from record import note

workers = 1
pidfile = "shop.pid"


def on_starting(server):
    note("starting", server.cfg.workers, server.master_pid, server.pid == os.getpid(), server.proc_name)


def when_ready(server):
    note("ready", server.num_workers, len(server.WORKERS), server.address == server.cfg.address)
    note("file", os.path.basename(server.pidfile.fname))
    note("timeout", server.timeout, server.cfg.address)
    note("app", server.app.cfg is server.cfg or server.app.cfg.workers, server.cfg.worker_class_str)
    note("listeners", len(server.LISTENERS), callable(server.halt), callable(server.kill_worker), callable(server.reload))


def pre_fork(server, worker):
    note("pre_fork", worker.age, server.worker_age, worker.ppid == server.pid, str(worker))


def child_exit(server, worker):
    note("child_exit", worker.pid in server.WORKERS, server.worker_class.__name__)
