# The order of the hooks in one start and stop.
#: get /

from record import note

workers = 1
on_starting = lambda server: note("on_starting")
when_ready = lambda server: note("when_ready")
pre_fork = lambda server, worker: note("pre_fork")
post_fork = lambda server, worker: note("post_fork")
post_worker_init = lambda worker: note("post_worker_init")
pre_request = lambda worker, req: note("pre_request")
post_request = lambda worker, req, environ, resp: note("post_request")
worker_exit = lambda server, worker: note("worker_exit")
child_exit = lambda server, worker: note("child_exit")
on_exit = lambda server: note("on_exit")
