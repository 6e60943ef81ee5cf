"""Load a server at the times of a Poisson process, whatever its answers do, and measure the latency.

    python -m bench open_loop URL --rate 2000 [--scenario flask] [--connections 64] [--seconds 2] [--seed 1]

A closed loop asks least when the server is slowest, and so misses the worst (coordinated omission). Here each request
has its time, by a generator with a fixed seed, and its latency counts from then to the last byte of its answer. A
request that finds all connections busy waits in a queue. Prints the result as wrk does, and the p99 of how far the
client itself was behind: near the latencies, the client is the limit (more than some 20,000 requests/s are). An answer
must be a 200 with a Content-Length, on a kept connection; otherwise the run ends with status 1.
"""

from __future__ import annotations

import gc
import re
import select
import socket
import sys
import time
from collections import deque
from contextlib import ExitStack
from itertools import count
from random import Random
from urllib.parse import urlsplit

from bench.load import percentile
from bench.scenarios import SCENARIOS
from bench.table import options_of

_ANSWER_WITHIN_S = 5.0
_SPIN_S = 0.0002
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Return the times of a Poisson process in seconds; the same seed gives the same times."""
    random, times = Random(seed), [0.0]
    while times[-1] < seconds:
        times.append(times[-1] + random.expovariate(rate))
    return times[1:-1]


def is_whole(answer: bytes) -> bool:
    """Tell whether an answer is complete; raise `ValueError` unless it is a 200 with a length."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    length = _LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 200 ") or length is None:
        raise ValueError(f"the server has answered {head[:40]!r}, or without a length")
    return len(body) >= int(length[1])


class OpenLoop:
    """Makes each request at its time; raises `OSError` or `ValueError` at the first trouble.

    Args:
        address: of the server.
        request: in it, each %d stands for a number that is new in every request.
        times: when requests are due, in seconds from the beginning.
        connections: how many are kept open.

    Attributes:
        latencies_s: from the due time to the last byte of the answer.
        late_s: from the due time until the client sent or queued the request.
        received: bytes.
    """

    def __init__(self, address: tuple[str, int], request: bytes, times: list[float], connections: int) -> None:
        self.latencies_s: list[float] = []
        self.late_s: list[float] = []
        self.received = 0
        self._address, self._times, self._connections = address, times, connections
        self._request, self._places, self._numbers = request, request.count(b"%d"), count(100_000_000)
        self._due: dict[socket.socket, float] = {}

    def run(self) -> float:
        """Make all requests; return the seconds until the last answer."""
        times, late_s, end_s = self._times, self.late_s, self._times[-1] + _ANSWER_WITHIN_S
        waiting: deque[float] = deque()
        with ExitStack() as stack:
            epoll = stack.enter_context(select.epoll())
            opened = [socket.create_connection(self._address, timeout=10) for _ in range(self._connections)]
            idle, sockets = deque(opened), {each.fileno(): stack.enter_context(each) for each in opened}
            for fd, connection in sockets.items():
                connection.setblocking(False)
                epoll.register(fd, select.EPOLLIN)
            parts = dict.fromkeys(sockets, b"")
            begun = time.perf_counter()
            while len(self.latencies_s) < len(times):
                now, due = time.perf_counter() - begun, (times[len(late_s)] if len(late_s) < len(times) else end_s)
                if now >= end_s:
                    missing = len(times) - len(self.latencies_s)
                    raise TimeoutError(f"{missing} requests have no answer {_ANSWER_WITHIN_S:g} s after the last")
                if now >= due:
                    late_s.append(now - due)
                    if idle:
                        self._send(idle.popleft(), due)
                    else:
                        waiting.append(due)
                    continue
                # epoll_wait(2) takes whole milliseconds, and Python rounds up: the client would wake too late.
                for fd, _ in epoll.poll(max(0, int((due - now - _SPIN_S) * 1000)) / 1000):
                    connection = sockets[fd]
                    data = connection.recv(65536)
                    if not data or connection not in self._due:
                        raise OSError("the server has closed a kept connection, or answered without a request")
                    self.received += len(data)
                    parts[fd] += data
                    if is_whole(parts[fd]):
                        self.latencies_s.append(time.perf_counter() - begun - self._due.pop(connection))
                        parts[fd] = b""
                        if waiting:
                            self._send(connection, waiting.popleft())
                        else:
                            idle.append(connection)
            return time.perf_counter() - begun

    def _send(self, connection: socket.socket, due: float) -> None:
        self._due[connection] = due
        request = self._request % ((next(self._numbers),) * self._places)
        if connection.send(request) < len(request):
            raise OSError("the server does not read its requests")


def main() -> None:
    """Load the server, and print what wrk would print."""
    url = urlsplit(sys.argv.pop(1) if sys.argv[1:] and sys.argv[1][0] != "-" else "")
    options = options_of(__doc__, rate=100.0, scenario="flask", connections=64, seconds=2.0, seed=1)
    times = schedule(options.rate, options.seconds, options.seed)
    if not times:
        sys.exit("no request is due in so short a time")
    address = (url.hostname or "127.0.0.1", url.port or 80)
    loop = OpenLoop(address, SCENARIOS[options.scenario].request(), times, options.connections)
    gc.disable()  # its pauses would be the server's latency
    try:
        elapsed = loop.run()
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    latencies, late = sorted(loop.latencies_s), sorted(loop.late_s)
    for share in (50, 99, 99.9):
        print(f"{share}% {percentile(latencies, share / 100) * 1e6:.1f}us")
    print(f"Client late: {percentile(late, 0.99) * 1e6:.1f}us")
    print(f"{len(latencies)} requests in {elapsed:.2f}s\nRequests/sec: {len(latencies) / elapsed:.2f}")
    print(f"Transfer/sec: {loop.received / elapsed / (1 << 20):.2f}MB")
