"""Load a server with large responses, for which the kernel discards the bodies.

    python -m bench download URL [--connections 4] [--seconds 3]

wrk copies each byte and looks at it, in pieces of 8 KiB: with large responses wrk would be the limit. Prints the result
as wrk does. One thread; GET after GET on each connection, kept if the server keeps it. A response must be a 200 with a
Content-Length; its bytes are counted, not looked at.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from urllib.parse import urlsplit

from bench.load import percentile
from bench.table import options_of

_DISCARD = bytearray(4 << 20)


class Download:
    """One connection and its present response. Raises `OSError` when the server breaks off."""

    def __init__(self, host: str, port: int, target: str) -> None:
        self._address = (host, port)
        self._request = f"GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
        self.received, self.length = 0, 1
        self.latencies_s: list[float] = []
        self.connect()

    def connect(self) -> None:
        """Connect, and make the first request."""
        self.socket = socket.create_connection(self._address, timeout=10)
        self._ask()

    def _ask(self) -> None:
        self.socket.sendall(self._request)
        self._begun, self._head, self._left = time.perf_counter(), b"", 0

    def receive(self) -> None:
        """Take what has come; at the end of a response make the next request, on a new connection if need be."""
        if self._left:
            # tcp(7): with MSG_TRUNC the bytes are discarded, not copied.
            count = self.socket.recv_into(_DISCARD, min(self._left, len(_DISCARD)), socket.MSG_TRUNC)
            if not count:
                raise OSError("the server has broken off")
            self._left -= count
        else:
            piece = self.socket.recv(4096)
            if not piece:
                raise OSError("the server has closed the connection in place of an answer")
            self._head += piece
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._read_head(head.lower())
            count = len(body)
            self._left = self.length - count
        self.received += count
        if not self._left:
            self.latencies_s.append(time.perf_counter() - self._begun)
            if self._close:
                self.socket.close()
                self.connect()
            else:
                self._ask()

    def _read_head(self, head: bytes) -> None:
        status, *lines = head.split(b"\r\n")
        fields = dict(line.partition(b":")[::2] for line in lines)
        if b" 200" not in status or b"content-length" not in fields:
            raise OSError(f"the server has answered {status!r}, or without a length")
        kept = fields.get(b"connection", b"").strip()
        self._close = kept == b"close" or (status.startswith(b"http/1.0") and kept != b"keep-alive")
        self.length = int(fields[b"content-length"])


def main() -> None:
    """Load the server, and print what wrk would print."""
    url = urlsplit(sys.argv.pop(1) if sys.argv[1:] and sys.argv[1][0] != "-" else "")
    options = options_of(__doc__, connections=4, seconds=3.0)
    place = (url.hostname or "127.0.0.1", url.port or 80, url.path or "/")
    downloads = [Download(*place) for _ in range(options.connections)]
    begun, failed = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begun) < options.seconds:
        ready, _, _ = select.select([each.socket for each in downloads], [], [], 0.1)
        for download in downloads:
            if download.socket in ready:
                try:
                    download.receive()
                except OSError:
                    failed += 1
                    download.socket.close()
                    download.connect()
    # From the bytes, which are exact also when few responses, of 50 MB each, are whole.
    received = sum(download.received for download in downloads)
    latencies = sorted(latency for download in downloads for latency in download.latencies_s)
    if not latencies:
        sys.exit("no response was whole")
    requests = received / downloads[0].length
    for share in (50, 99):
        print(f"{share}% {percentile(latencies, share / 100) * 1000:.3f}ms")
    print(f"{requests:.2f} requests in {elapsed:.2f}s\nRequests/sec: {requests / elapsed:.2f}")
    print(f"Transfer/sec: {received / elapsed / (1 << 20):.2f}MB")
    if failed:
        print(f"Socket errors: connect 0, read {failed}, write 0, timeout 0")
