# Metrics to a statsd on the same host.
#: udp
#: get /
#: get /status/404

import os

statsd_host = "127.0.0.1:" + os.environ["UDP_PORT"]
statsd_prefix = "shop.web"
dogstatsd_tags = "env:test,service:shop"
