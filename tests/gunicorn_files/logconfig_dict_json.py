# JSON lines for everything, by logconfig_dict and python-json-logger.
#: get /log
#: get / User-Agent: check/1.0
#: out ^\{
#: log NOTHING

accesslog = "-"
access_log_format = "%(m)s %(U)s %(s)s %(a)s"
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["json"]},
    "loggers": {
        "gunicorn.error": {"level": "WARNING", "handlers": ["json"], "propagate": False, "qualname": "gunicorn.error"},
        "gunicorn.access": {"level": "INFO", "handlers": ["json"], "propagate": False, "qualname": "gunicorn.access"},
    },
    "handlers": {"json": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}},
    "formatters": {
        "json": {
            "class": "pythonjsonlogger.jsonlogger.JsonFormatter",
            "format": "%(name)s %(levelname)s %(message)s",
        }
    },
}
