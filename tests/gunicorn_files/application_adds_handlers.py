# The application adds a handler to gunicorn's logs as it is imported.
#: app audited:app
#: get /
#: get /gunicorn-log
#: file audit.log
#: file requests.log

accesslog = "-"
access_log_format = "%(m)s %(U)s"
