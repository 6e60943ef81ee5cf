# Health checks are kept out of the access log by a filter of logconfig_dict.
#: get /health
#: get /
#: get /health/deep
#: file requests.log

import logging


class NoHealthChecks(logging.Filter):
    def filter(self, record):
        return "/health" not in record.getMessage()


logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"no_health": {"()": NoHealthChecks}},
    "formatters": {"plain": {"format": "%(message)s"}},
    "handlers": {
        "requests": {
            "class": "logging.FileHandler",
            "filename": "requests.log",
            "formatter": "plain",
            "filters": ["no_health"],
        },
        "console": {"class": "logging.StreamHandler"},
    },
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {
        "gunicorn.access": {"level": "INFO", "handlers": ["requests"], "propagate": False},
        "gunicorn.error": {"level": "INFO", "handlers": ["console"], "propagate": False},
    },
}
access_log_format = '"%(r)s" %(s)s'
