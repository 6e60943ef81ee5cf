# Metrics of the hooks' own, by the log and by extra.
#: udp
#: get /

import os

statsd_host = "127.0.0.1:" + os.environ["UDP_PORT"]
statsd_prefix = "shop."
loglevel = "error"


def post_worker_init(worker):
    worker.log.increment("workers.started", 1)
    worker.log.info("", extra={"metric": "queue.length", "value": 12, "mtype": "gauge"})
    worker.log.debug("not shown", extra={"metric": "cache.warm", "value": 1, "mtype": "counter"})


def post_request(worker, req, environ, resp):
    worker.log.log("info", "", extra={"metric": "answer.bytes", "value": resp.sent, "mtype": "histogram"})
    worker.log.timer("answer.rendered", 12)
