# Only warnings are logged; hooks use every level of the log.
#: get /
#: log \[(WARNING|ERROR|CRITICAL)\] from a hook.*

loglevel = "WARNING"


def when_ready(server):
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(server.log, level)("from a hook: %s", level)
    server.log.log("error", "from a hook: %s", "log")
    try:
        1 / 0  # noqa
    except ZeroDivisionError:
        server.log.exception("from a hook: exception")
