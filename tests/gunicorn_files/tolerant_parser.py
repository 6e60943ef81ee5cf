# Old clients: tolerant parsing, a proxy that folds or pads header lines.
#: raw GET /environ/HTTP_X_A HTTP/1.1\r\nHost: shop\r\nX-A: 1\r\n  2\r\nConnection: close\r\n\r\n
#: raw GET /environ/HTTP_X_A HTTP/1.1\r\nHost: shop\r\nX-A : 1\r\nConnection: close\r\n\r\n
#: raw get /environ/REQUEST_METHOD HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n

permit_obsolete_folding = True
strip_header_spaces = True
permit_unconventional_http_method = True
permit_unconventional_http_version = True
casefold_http_method = True
