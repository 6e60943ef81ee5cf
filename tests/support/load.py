"""A bounded load of well-behaved clients, and an account of every request they made."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rawclient import RawClient, Response

# No load outlives this, whatever its test does. Longer than any test lasts, on a busy machine and under coverage, too:
# a test would take a load that has ended for a server that does not answer.
_LONGEST_S = 120.0


@dataclass
class Client:
    """One client's account.

    Attributes:
        connections: how many it has made.
        served_by: the ``X-Pid`` of its last response.
        lost: what went wrong, one text for each request that got no response.
    """

    done: int = 0
    connections: int = 0
    served_by: int = 0
    lost: list[str] = field(default_factory=list)
    bodies: set[bytes] = field(default_factory=set)
    statuses: set[int] = field(default_factory=set)


class Load:
    """``clients`` threads that ask for ``target`` again and again until the ``with`` block is left.

    Args:
        keep: use one connection until the server announces its end; otherwise a new one for each request.
        pause_s: between two requests of a client. Without one the clients take all the processors there are.
    """

    def __init__(
        self, address: Any, target: str = "/", clients: int = 4, *, keep: bool = False, pause_s: float = 0.004
    ) -> None:
        self.address = address
        self.target = target
        self.keep = keep
        self.pause_s = pause_s
        self.clients = [Client() for _ in range(clients)]
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._threads = [threading.Thread(target=self._run, args=(one,), daemon=True) for one in self.clients]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_LONGEST_S)

    @property
    def done(self) -> int:
        """Requests answered so far."""
        return sum(client.done for client in self.clients)

    @property
    def lost(self) -> list[str]:
        """What went wrong so far."""
        return [text for client in self.clients for text in client.lost]

    def wait_for_more(self, requests: int, deadline_s: float = 15.0) -> None:
        """Wait until so many requests have been answered from now on, by each client at least one."""
        goal = self.done + requests
        goals = [client.done + 1 for client in self.clients]

        def reached() -> bool:
            each = all(client.done >= own for client, own in zip(self.clients, goals, strict=True))
            return each and self.done >= goal

        with self._progress:
            assert self._progress.wait_for(reached, deadline_s), f"the load stands still; lost: {self.lost[:5]}"

    def _run(self, account: Client) -> None:
        connection: RawClient | None = None
        end = time.monotonic() + _LONGEST_S
        while not self._stop.is_set() and time.monotonic() < end:
            try:
                if connection is None:
                    connection = RawClient(self.address)
                    account.connections += 1
                response = connection.get(self.target, headers="" if self.keep else "Connection: close\r\n")
            except (OSError, AssertionError) as problem:
                account.lost.append(repr(problem)[:300])
                if connection is not None:
                    connection.close()
                connection = None
                continue
            self._note(account, response)
            if not self.keep or response.closes:
                connection.close()
                connection = None
            time.sleep(self.pause_s)
        if connection is not None:
            connection.close()

    def _note(self, account: Client, response: Response) -> None:
        account.bodies.add(response.body)
        account.statuses.add(response.status)
        account.served_by = int(response.one("X-Pid") or 0)
        with self._progress:
            account.done += 1
            self._progress.notify_all()
