# nginx on two known addresses: its scheme headers count, three of them as by default.
#: bind tcp
#: get /where X-Forwarded-Proto: https
#: get /where X-Forwarded-Ssl: on
#: get /where X-Forwarded-Protocol: ssl
#: get /where X-Forwarded-Proto: http
#: get /where X-Forwarded-Proto: https | X-Forwarded-Ssl: off
#: get /fields X-Forwarded-Proto: https | X-Forwarded-For: 198.51.100.1, 10.0.0.2 | X-Real-Ip: 198.51.100.1

import os

proxies = ["10.0.0.2", "127.0.0.1"]
forwarded_allow_ips = ",".join(proxies)
secure_scheme_headers = {
    "X-FORWARDED-PROTOCOL": "ssl",
    "X-FORWARDED-PROTO": "https",
    "X-FORWARDED-SSL": "on",
}
workers = int(os.environ.get("WORKERS", 1))
