# Django behind nginx on the same host: a Unix socket, the scheme from the proxy's header.
#: app site_django:application
#: bind shop.sock
#: get / X-Forwarded-Proto: https
#: get / X-Forwarded-Proto: http
#: get /settings
#: get /missing
#: mode shop.sock

import os

bind = "unix:" + os.path.join(os.path.dirname(os.path.abspath(__file__)), "shop.sock")
workers = 1
umask = 0o007
raw_env = ["DJANGO_SETTINGS_MODULE=shop.settings.production", "LANG=C.UTF-8"]
accesslog = "access.log"
errorlog = "-"
loglevel = "info"
timeout = 60
keepalive = 5
max_requests = 1000
max_requests_jitter = 50
