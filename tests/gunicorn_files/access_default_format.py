# An access log with gunicorn's default format.
#: bind tcp
#: get /a?b=1 Referer: https://shop.example/ | User-Agent: check/1
#: get /environ/SERVER_PROTOCOL

accesslog = "-"
