"""The package's configuration, named gunicorn as in many projects."""

accesslog = "-"
access_log_format = "package %(m)s %(U)s"
