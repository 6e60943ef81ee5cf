# HAProxy with send-proxy in front.
#: bind tcp
#: raw PROXY TCP4 203.0.113.7 127.0.0.1 40000 80\r\nGET /where HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n
#: raw GET /where HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n

proxy_protocol = True
proxy_allow_ips = "127.0.0.1"
