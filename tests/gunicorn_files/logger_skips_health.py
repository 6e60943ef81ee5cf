# A logger class by its path drops the load balancer's health checks.
#: get /health
#: get /
#: get /healthy
#: log company log is set up

logger_class = "company_logging.QuietLogger"
accesslog = "-"
access_log_format = "%(m)s %(U)s %(s)s"
