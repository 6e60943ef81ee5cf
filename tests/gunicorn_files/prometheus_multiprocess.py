# prometheus_client in several processes: a dead worker's files are marked, the directory is emptied at the start.
#: get /env/PROMETHEUS_MULTIPROC_DIR
#: worker TERM
#: wait mark_process_dead
#: replaced
#: get /

import os
import shutil

from record import note

workers = 1
raw_env = ["PROMETHEUS_MULTIPROC_DIR=metrics"]
metrics = "metrics"


def on_starting(server):
    shutil.rmtree(metrics, ignore_errors=True)
    os.makedirs(metrics)
    note("metrics directory is empty", os.listdir(metrics))


def child_exit(server, worker):
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)
