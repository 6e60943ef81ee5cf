# The PROXY protocol from anybody.
#: bind tcp
#: raw PROXY TCP4 203.0.113.7 127.0.0.1 40000 80\r\nGET /where HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n

proxy_protocol = "v1"
proxy_allow_ips = "*"
