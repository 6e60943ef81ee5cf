# With preload_app, pre_fork passes a number by the environment, and objects on the worker.
#: get /env/WORKER_SLOT
#: get /env/APP_STAGE
#: wait post

import os
import threading

from record import note

preload_app = True
raw_env = ["APP_STAGE=test"]
workers = 1


def pre_fork(server, worker):
    os.environ["WORKER_SLOT"] = str(worker.age)
    worker.slot = worker.age
    worker.tags = {"stage": ["test"]}


def post_fork(server, worker):
    note("post", worker.slot, worker.tags, os.environ["WORKER_SLOT"], threading.current_thread().name)


def worker_exit(server, worker):
    note("exit", worker.slot)
