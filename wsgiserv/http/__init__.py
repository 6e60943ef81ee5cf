"""HTTP/1.1 on bytes: bytes in, bytes out."""
