# The application cannot be imported: status 3, and the hooks of the end run.
#: app broken:app
#: distinct
#: ends
#: log RuntimeError: no database

from record import note


def on_exit(server):
    note("on_exit")


def worker_exit(server, worker):
    note("worker_exit")
