# A Flask service in a container: workers from the processors, logs to the standard streams.
#: app site_flask:app
#: env PORT=0
#: env LOG_LEVEL=info
#: bind file
#: any-order
#: get /
#: get /away
#: log \[INFO\] index is asked for

import multiprocessing
import os

bind = f"0.0.0.0:{os.getenv('PORT', '8000')}"
workers = multiprocessing.cpu_count() * 2 + 1
threads = int(os.getenv("THREADS", "2"))
worker_class = "gthread"
worker_tmp_dir = "/dev/shm"
loglevel = os.getenv("LOG_LEVEL", "warning")
accesslog = "-"
errorlog = "-"
access_log_format = '%(m)s %(U)s%(q)s %(H)s %(s)s "%(f)s" "%(a)s"'
