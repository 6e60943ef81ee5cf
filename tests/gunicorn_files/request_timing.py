# Times of requests: pre_request starts the clock on the request object, post_request reads it.
#: get /sleep
#: get /status/404?page=2
#: post /body a=1
#: log Closing request\. \w+ \S+ \d+ .*

import time

loglevel = "debug"


def pre_request(worker, req):
    req.started = time.monotonic()
    worker.log.debug("%s %s", req.method, req.path)


def post_request(worker, req, environ, resp):
    elapsed = time.monotonic() - req.started
    worker.log.info(
        "Closing request. %s %s %s %s", req.method, req.uri, resp.status.split()[0], "slow" if elapsed > 0.15 else "fast"
    )
