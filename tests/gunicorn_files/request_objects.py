# What the request's hooks find on the request, the environ and the response.
#: get /a/b?x=1 X-Tag: 5
#: post /body hello
#: wait 2 post

from record import note


def pre_request(worker, req):
    note("pre", req.method, req.uri, req.path, req.query, req.fragment, req.version, req.scheme)
    note("fields", sorted((name, value) for name, value in req.headers if name in ("HOST", "X-TAG")))


def post_request(worker, req, environ, resp):
    note("post", resp.status, resp.status_code, resp.sent, resp.response_length, dict(resp.headers)["X-Shop"])
    note(environ["PATH_INFO"], environ["wsgi.url_scheme"], environ["RAW_URI"], worker.nr)
