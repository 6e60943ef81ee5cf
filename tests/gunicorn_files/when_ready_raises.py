# A check in when_ready raises: nothing is served.
#: distinct
#: ends
#: log no cache

from record import note


def when_ready(server):
    note("looking for the cache")
    raise RuntimeError("no cache")
