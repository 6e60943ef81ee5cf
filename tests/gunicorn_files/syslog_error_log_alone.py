# The error log in syslog, the access log in a file.
#: udp
#: get /
#: get /gunicorn-log
#: file access.log

import os

syslog = True
syslog_addr = "udp://127.0.0.1:" + os.environ["UDP_PORT"]
disable_redirect_access_to_syslog = True
proc_name = "shop:live"
accesslog = "access.log"
access_log_format = "%(m)s %(U)s %(s)s"
loglevel = "warning"
