# A trusted proxy names the part of the path below which the application lies.
#: bind tcp
#: raw GET /shop/where HTTP/1.1\r\nHost: shop\r\nSCRIPT_NAME: /shop\r\nConnection: close\r\n\r\n
#: raw GET /environ/HTTP_REMOTE_USER HTTP/1.1\r\nHost: shop\r\nREMOTE_USER: admin\r\nConnection: close\r\n\r\n

forwarded_allow_ips = "127.0.0.1"
forwarder_headers = "SCRIPT_NAME,REMOTE_USER"
header_map = "drop"
