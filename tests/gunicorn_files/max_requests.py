# A worker is replaced after some requests.
#: distinct
#: remember
#: get /
#: get /
#: get /
#: replaced
#: get /

max_requests = 3
max_requests_jitter = 0
workers = 1
accesslog = "-"
access_log_format = "%(U)s"
