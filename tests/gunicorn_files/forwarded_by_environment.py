# The proxies are named by the environment, as on platforms; the file says nothing.
#: env FORWARDED_ALLOW_IPS=127.0.0.2,10.0.0.0/8
#: bind tcp
#: from 127.0.0.2
#: get /where X-Forwarded-Proto: https
#: get /fields X-Forwarded-Proto: https | X-Forwarded-For: 203.0.113.7

workers = 1
