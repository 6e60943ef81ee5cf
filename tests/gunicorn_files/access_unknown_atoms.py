# Atoms of other servers' formats: gunicorn writes a dash.
#: get /
#: get /status/500

accesslog = "-"
access_log_format = "%(v)s %(s)s %(X)s %(request_time)s %(m)s"
