"""A client for large responses that costs less than their servers: it has the kernel throw the bodies away.

    python -m bench.download URL [--connections 4] [--seconds 3]

Prints what it has found as wrk would: wrk copies and looks at every byte, in pieces of 8 KiB, so with large
responses wrk would be what is measured. One thread; a GET after the other on each connection, kept if the server
keeps it. A response must have a Content-Length and be 200; its bytes are counted, not looked at.
"""

from __future__ import annotations

import argparse
import select
import socket
import time
from urllib.parse import urlsplit

_DISCARD = bytearray(4 << 20)


class Download:
    """One connection and the response that comes on it. Raises `OSError` when the server breaks off."""

    def __init__(self, host: str, port: int, target: str) -> None:
        self._address = (host, port)
        self._request = f"GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
        self.socket = self._connect()
        self.received = 0
        self.length = 1
        self.latencies_s: list[float] = []

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, timeout=10)
        connection.sendall(self._request)
        self._begun, self._head, self._left = time.perf_counter(), b"", 0
        return connection

    def reconnect(self) -> None:
        """Begin again on a connection of its own."""
        self.socket.close()
        self.socket = self._connect()

    def receive(self) -> bool:
        """Take what has come; return whether the socket is another one now."""
        if not self._left:
            self._head += self.socket.recv(4096)
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                if not self._head:
                    raise OSError("the server has closed the connection in place of an answer")
                return False
            lines = head.lower().split(b"\r\n")
            fields = dict(line.partition(b":")[::2] for line in lines[1:])
            if b" 200" not in lines[0] or b"content-length" not in fields:
                raise OSError(f"the server has answered {lines[0]!r}, or without a length")
            connection = fields.get(b"connection", b"").strip()
            self._close = connection == b"close" or (
                lines[0].startswith(b"http/1.0") and connection != b"keep-alive"
            )
            self.length = int(fields[b"content-length"])
            self._left = self.length - len(body)
            count = len(body)
        else:
            # tcp(7): with MSG_TRUNC the bytes are discarded, not copied.
            count = self.socket.recv_into(_DISCARD, min(self._left, len(_DISCARD)), socket.MSG_TRUNC)
            if not count:
                raise OSError("the server has broken off")
            self._left -= count
        self.received += count
        if self._left:
            return False
        self.latencies_s.append(time.perf_counter() - self._begun)
        if self._close:
            self.reconnect()
            return True
        self.socket.sendall(self._request)
        self._begun, self._head = time.perf_counter(), b""
        return False


def run(url: str, connections: int, seconds: float) -> str:
    """Load a server; return what wrk would print."""
    parts = urlsplit(url)
    host, port, target = parts.hostname or "127.0.0.1", parts.port or 80, parts.path or "/"
    poll = select.poll()
    downloads = [Download(host, port, target) for _ in range(connections)]
    by_fd = {download.socket.fileno(): download for download in downloads}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    begun, failed = time.perf_counter(), 0
    while time.perf_counter() < begun + seconds and by_fd:
        for fd, _ in poll.poll(100):
            download = by_fd[fd]
            try:
                another = download.receive()
            except OSError:
                failed += 1
                download.reconnect()
                another = True
            if another:
                poll.unregister(fd)
                del by_fd[fd]
                by_fd[download.socket.fileno()] = download
                poll.register(download.socket, select.POLLIN)
    elapsed = time.perf_counter() - begun
    # From the bytes, which are exact also when few responses, of 50 MB each, are whole.
    received = sum(download.received for download in downloads)
    rate = received / downloads[0].length / elapsed
    latencies_ms = sorted(1000 * latency for download in downloads for latency in download.latencies_s)
    if not latencies_ms:
        raise SystemExit("no response was whole")
    report = [
        f"{share}% {latencies_ms[int((len(latencies_ms) - 1) * share / 100)]:.3f}ms" for share in (50, 99)
    ]
    report.append(f"Requests/sec: {rate:.2f}")
    report.append(f"Transfer/sec: {received / elapsed / (1 << 20):.2f}MB")
    if failed:
        report.append(f"Socket errors: connect 0, read {failed}, write 0, timeout 0")
    return "\n".join(report)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    print(run(options.url, options.connections, options.seconds))


if __name__ == "__main__":
    main()
