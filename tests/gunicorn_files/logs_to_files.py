# Logs below a directory, by os.path.
#: get /
#: file logs/access.log
#: logfile logs/error.log shop begins

import os

BASE_DIR = os.path.dirname(os.path.abspath(__file__))
LOG_DIR = os.path.join(BASE_DIR, "logs")
os.makedirs(LOG_DIR, exist_ok=True)

accesslog = os.path.join(LOG_DIR, "access.log")
errorlog = os.path.join(LOG_DIR, "error.log")
access_log_format = "%(m)s %(U)s %(s)s"
loglevel = "info"


def on_starting(server):
    server.log.info("shop begins")
