# Logging from an ini file: the access log, the server's log and the application's go three ways.
#: get /log
#: get /status/404
#: get /gunicorn-log
#: file access.log
#: logfile error.log .*shop is ready.*|.*written through.*

logconfig = "logging.ini"
access_log_format = "%(m)s %(U)s %(s)s"


def when_ready(server):
    server.log.info("shop is ready")
