# gunicorn's modules are imported by the hooks, when they run.
#: get /
#: wait 3 .

from record import note


def when_ready(server):
    from gunicorn import __version__

    note("ready", __version__.split(".")[0].isdigit())


def post_fork(server, worker):
    import gunicorn.util

    note("fork", gunicorn.util.parse_address("127.0.0.1:80"), gunicorn.SERVER)


def post_request(worker, req, environ, resp):
    from gunicorn.errors import HaltServer

    note("request", issubclass(HaltServer, BaseException), type(req).__name__.endswith("Request"))
