# Older files have post_request with two.
#: get /
#: wait post

from record import note


def post_request(worker, req):
    note("post", req.method, req.path)
