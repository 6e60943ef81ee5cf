# Numbers of operations: backlog, connections, keep-alive, time-outs.
#: get /
#: get /sleep
#: get /flags

backlog = 64
workers = 2
worker_class = "gthread"
threads = 4
worker_connections = 200
timeout = 120
graceful_timeout = 90
keepalive = 65
reuse_port = False
sendfile = True
