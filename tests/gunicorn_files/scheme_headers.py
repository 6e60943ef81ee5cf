# Headers of one's own that say the scheme.
#: bind tcp
#: get /where X-Edge-Tls: yes
#: get /where X-Edge-Tls: no
#: get /where X-Forwarded-Proto: https

forwarded_allow_ips = "127.0.0.1"
secure_scheme_headers = {"X-EDGE-TLS": "yes"}
