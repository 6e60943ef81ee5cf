# Both logs to syslog over UDP.
#: udp
#: get /
#: get /gunicorn-log

import os

syslog = True
syslog_addr = "udp://127.0.0.1:" + os.environ["UDP_PORT"]
syslog_prefix = "shop"
syslog_facility = "local3"
access_log_format = "%(m)s %(U)s"
disable_redirect_access_to_syslog = False
loglevel = "warning"
