# Every hook of a server's life, with a reload.
#: get /
#: signal HUP
#: wait on_reload
#: wait 2 post_worker_init
#: wait child_exit
#: get /
#: any-order

from record import note

workers = 1


def on_starting(server):
    note("on_starting")


def on_reload(server):
    note("on_reload")


def when_ready(server):
    note("when_ready")


def pre_fork(server, worker):
    note("pre_fork", worker.age)


def post_fork(server, worker):
    note("post_fork", worker.age)


def post_worker_init(worker):
    note("post_worker_init", worker.age)


def worker_int(worker):
    note("worker_int")


def worker_abort(worker):
    note("worker_abort")


def pre_exec(server):
    note("pre_exec")


def pre_request(worker, req):
    if req.path != "/pid":
        note("pre_request")


def post_request(worker, req, environ, resp):
    if req.path != "/pid":
        note("post_request")


def child_exit(server, worker):
    note("child_exit", worker.age)


def worker_exit(server, worker):
    note("worker_exit", worker.age)


def nworkers_changed(server, new_value, old_value):
    note("nworkers_changed", new_value, old_value)


def on_exit(server):
    note("on_exit")
