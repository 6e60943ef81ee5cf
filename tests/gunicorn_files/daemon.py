# In the background, found again by its pid file, both logs in files.
#: daemon shop.pid
#: get /
#: get /cwd
#: file access.log
#: logfile error.log shop is up

daemon = True
pidfile = "shop.pid"
accesslog = "access.log"
errorlog = "error.log"
access_log_format = "%(m)s %(U)s"
proc_name = "shop-in-the-background"


def when_ready(server):
    server.log.info("shop is up")
