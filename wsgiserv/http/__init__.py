"""HTTP/1.1 on bytes: bytes in, bytes out. Must not know sockets, WSGI, files or the clock."""
