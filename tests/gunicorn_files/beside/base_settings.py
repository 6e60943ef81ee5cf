"""What all of a company's services share; their files import everything of it."""

from record import note

workers = 1
timeout = 45
accesslog = "-"
access_log_format = "base %(m)s %(U)s %(s)s"


def on_starting(server):
    note("base on_starting", server.cfg.timeout)


def post_fork(server, worker):
    note("base post_fork")
