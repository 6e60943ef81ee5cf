"""A configuration for production, with the reason for each line.

    wsgiserv -c gun.py hello:app

Every name is a setting (docs/settings.md); what is not set here has a default that is right for most.
"""

# Where to listen. Behind a proxy on the same machine a Unix socket will do: "unix:/run/wsgiserv/hello.sock".
bind = ["127.0.0.1:8000"]

# "auto" sizes the fleet from the CPUs and the memory this container may really use.
workers = "auto"
worker_class = "sync"

# A worker that has been silent for so long is killed, and the log says what it was doing.
timeout = 30
# How long a stop or a reload lets requests in flight finish.
graceful_timeout = 30
# Longer than the proxy's own, so that it is the proxy who closes an idle connection.
keepalive = 75

# A remedy for applications that leak memory; the jitter keeps workers from leaving all at once.
max_requests = 100_000
max_requests_jitter = 10_000

# The largest upload that the application should ever see: more is answered with 413.
limit_request_body = "100M"

# Logs on the standard streams suit systemd, supervisor and containers.
accesslog = "-"
access_log_format = "json"
errorlog = "-"
loglevel = "info"

# Believe X-Forwarded-* of the proxy on this machine, and of nobody else.
forwarded_allow_ips = "127.0.0.1,::1"


def when_ready(server):
    """Called once in the master when the sockets listen: a place to tell somebody."""
    server.log.info("ready to serve")
