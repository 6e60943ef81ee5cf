# An access log with every atom that gunicorn has.
#: bind tcp
#: get /a?b=1 Referer: https://shop.example/ | User-Agent: check "one" | Authorization: Basic YWRtaW46eA==
#: post /body abc
#: get /status/404

accesslog = "-"
access_log_format = (
    '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(m)s %(U)s %(q)s %(H)s %(s)s %(b)s %(B)s "%(f)s" "%(a)s" '
    "T=%(T)s M=%(M)s D=%(D)s L=%(L)s %(p)s"
)
