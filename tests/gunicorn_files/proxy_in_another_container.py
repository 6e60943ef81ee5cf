# A proxy in another container, and nothing set for it: its headers reach the application, which reads them itself.
#: bind tcp
#: from 127.0.0.2
#: get /fields X-Forwarded-For: 203.0.113.7 | X-Forwarded-Proto: https | X-Forwarded-Host: shop.example | X-Forwarded-Port: 443
#: get /fields X-Forwarded-Prefix: /shop | Forwarded: for=203.0.113.7;proto=https | X-Real-Ip: 203.0.113.7
#: get /where X-Forwarded-Proto: https | X-Forwarded-Prefix: /shop | X-Forwarded-Ssl: on
#: get /environ/REMOTE_USER X-Forwarded-User: admin

workers = 1
timeout = 120
