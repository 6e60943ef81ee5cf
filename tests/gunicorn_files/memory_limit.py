# Above a limit of memory a worker leaves after its request.
#: remember
#: get /
#: get /
#: replaced
#: get /
#: log leaves after its request

import resource

workers = 1
LIMIT_KB = 1024
seen = []


def post_request(worker, req, environ, resp):
    seen.append(req.path)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if memory > LIMIT_KB and len(seen) == 3:
        worker.log.warning("worker leaves after its request: too large")
        worker.alive = False
