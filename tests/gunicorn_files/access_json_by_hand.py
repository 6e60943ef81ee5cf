# JSON by hand in the access log's format.
#: get /a?b=1 User-Agent: check
#: get /status/404
#: get / User-Agent: check "two" \\

import json

accesslog = "-"
access_log_format = json.dumps(
    {"method": "%(m)s", "path": "%(U)s", "query": "%(q)s", "status": "%(s)s", "agent": "%(a)s", "bytes": "%(B)s"}
)
