# The length of the backlog as a metric.
#: udp
#: bind tcp
#: get /

import os

statsd_host = "127.0.0.1:" + os.environ["UDP_PORT"]
enable_backlog_metric = True
