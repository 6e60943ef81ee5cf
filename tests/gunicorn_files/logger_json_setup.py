# A logger class replaces the handlers' formatters in setup().
#: get /
#: get /gunicorn-log
#: log \{.*written.*\}

accesslog = "-"
errorlog = "-"
access_log_format = "%(m)s %(U)s"
logger_class = "company_logging.JsonLogger"
