# Heroku: the platform's PORT and WEB_CONCURRENCY, nothing bound in the file.
#: env PORT=0
#: env WEB_CONCURRENCY=2
#: bind file
#: any-order
#: distinct
#: get / X-Request-Id: 4f1c | X-Forwarded-For: 203.0.113.7
#: get /flags
#: wait workers

from record import note

worker_tmp_dir = "/dev/shm"
accesslog = "-"
access_log_format = 'request_id=%({x-request-id}i)s fwd="%({x-forwarded-for}i)s" method=%(m)s path=%(U)s status=%(s)s'


def when_ready(server):
    note("workers", server.cfg.workers, server.address[0][0])
