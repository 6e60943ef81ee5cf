# Old files have post_request with three arguments.
#: get /
#: get /
#: wait 2 post

from record import note


def post_request(worker, req, environ):
    note("post", req.path, environ["REQUEST_METHOD"])
