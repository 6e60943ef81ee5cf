# A check in post_fork raises: the worker does not serve, and at the start nothing does.
#: distinct
#: ends
#: log RuntimeError: not allowed to run as this user

from record import note


def post_fork(server, worker):
    note("post_fork")
    raise RuntimeError("not allowed to run as this user")


def on_exit(server):
    note("on_exit")
