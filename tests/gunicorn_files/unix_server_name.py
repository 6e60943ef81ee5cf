# A Unix socket behind nginx: SERVER_NAME and SERVER_PORT are those of the Host field.
#: get /environ/SERVER_NAME
#: get /environ/SERVER_PORT
#: get /environ/SERVER_PORT Host: shop.example:8443
#: get /environ/SERVER_NAME Host: www.shop.example
#: get /environ/REMOTE_ADDR

proxy_allow_ips = "*"
workers = 1
