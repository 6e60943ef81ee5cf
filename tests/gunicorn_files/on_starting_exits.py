# A check before the start: the server ends with the hook's status.
#: ends
#: log database is not reachable

import sys

from record import note


def database_is_up():
    return False


def on_starting(server):
    note("checking")
    if not database_is_up():
        server.log.error("database is not reachable")
        sys.exit(4)
