# An access log with fields of the request, of the response and variables of the environ.
#: get / X-Request-Id: 77 | X-Forwarded-For: 203.0.113.5
#: get /status/201

accesslog = "-"
access_log_format = (
    "%({x-request-id}i)s %({X-Forwarded-For}i)s %({x-shop}o)s %({Content-Length}o)s %({REQUEST_METHOD}e)s "
    "%({missing}i)s %({wsgi.url_scheme}e)s %({raw_uri}e)s"
)
