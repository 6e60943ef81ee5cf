# The environment names everybody, the file one proxy: the file counts.
#: env FORWARDED_ALLOW_IPS=*
#: bind tcp
#: from 127.0.0.2
#: get /where X-Forwarded-Proto: https

forwarded_allow_ips = "10.0.0.1"
