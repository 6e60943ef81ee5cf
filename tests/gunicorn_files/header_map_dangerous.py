# Headers with underscores, as old clients of an API send them.
#: raw GET /environ/HTTP_X_API_KEY HTTP/1.1\r\nHost: shop\r\nX_API_KEY: abc\r\nConnection: close\r\n\r\n

header_map = "dangerous"
