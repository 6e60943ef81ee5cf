# Only one address is trusted, and the client is another one.
#: bind tcp
#: from 127.0.0.2
#: get /where X-Forwarded-Proto: https
#: get /fields X-Forwarded-Proto: https | X-Forwarded-For: 203.0.113.7

forwarded_allow_ips = "10.11.12.13"
workers = 1
