"""A configuration that is a module on the path."""

from record import note

accesslog = "-"
access_log_format = "module %(m)s %(U)s"


def when_ready(server):
    note("module when_ready")
