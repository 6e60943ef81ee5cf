# Hooks and the application add handlers and filters to the server's loggers.
#: get /health
#: get /
#: get /gunicorn-log
#: file audit.log
#: file requests.log

import logging


class NoHealth(logging.Filter):
    def filter(self, record):
        return "/health" not in record.getMessage()


accesslog = "-"
access_log_format = "%(m)s %(U)s"


def when_ready(server):
    handler = logging.FileHandler("audit.log")
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.addFilter(lambda record: "written" in record.getMessage() or "audit" in record.getMessage())
    server.log.error_log.addHandler(handler)
    server.log.info("audit begins")


def post_worker_init(worker):
    logging.getLogger("gunicorn.access").addFilter(NoHealth())
    worker.log.access_log.addHandler(logging.FileHandler("requests.log"))
