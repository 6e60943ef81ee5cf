# gevent workers with psycogreen: the driver is patched in each worker.
#: get /
#: get /flags
#: get /sleep
#: log Made psycopg green

from psycogreen.gevent import patch_psycopg

worker_class = "gevent"
worker_connections = 500
workers = 1
timeout = 30


def post_fork(server, worker):
    patch_psycopg()
    worker.log.info("Made psycopg green")
