# The statsd logger by its path.
#: udp
#: get /

import os

logger_class = "gunicorn.instrument.statsd.Statsd"
statsd_host = f"127.0.0.1:{os.environ['UDP_PORT']}"
statsd_prefix = ""
accesslog = "-"
access_log_format = "%(U)s"
