# Azure App Service: the front end terminates TLS and is another host; long timeout, logs to the streams.
#: bind tcp
#: get /where X-Forwarded-Proto: https
#: get /where X-Forwarded-Proto: http
#: get /fields X-Forwarded-For: 203.0.113.9:52344 | X-ARR-SSL: 2048|256 | X-Original-Host: shop.example
#: get /away X-Forwarded-Proto: https

import multiprocessing

max_requests = 1000
max_requests_jitter = 50
log_file = "-"
accesslog = "-"
access_log_format = '%(h)s "%(r)s" %(s)s'
timeout = 230
forwarded_allow_ips = "*"
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
num_cpus = multiprocessing.cpu_count()
workers = 1
