# Logging from a JSON file.
#: get /
#: get /gunicorn-log
#: logfile error.log .*written.*
#: out access

logconfig_json = "logging.json"
loglevel = "warning"
access_log_format = "%(m)s %(U)s %(s)s"
