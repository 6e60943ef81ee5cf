"""The ``threads`` worker: one reactor, led by one thread at a time.

Owns: the threads and the baton.
Must not know: HTTP, the master.

The thread that holds the baton leads: it polls and reads. When a request is ready it passes the baton on and
runs the application itself, so no request is handed from one thread to another.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque
from threading import Thread

from wsgiserv.boot import WorkerBoot
from wsgiserv.net.connection import Connection
from wsgiserv.workers.reactorworker import ReactorWorker

__all__ = ["ThreadsWorker"]


class ThreadsWorker(ReactorWorker):
    """Runs requests in ``threads`` threads at once."""

    multithread = True

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        self._baton = allocate_lock()
        self._ready: deque[Connection] = deque()
        self.run_request = self._ready.append

    def serve(self) -> None:
        """Start the threads and be one of them, until the worker has left."""
        resume = self.reactor.resume

        def resume_and_wake(connection: Connection) -> None:
            resume(connection)
            self._wake()

        self.reactor.resume = resume_and_wake  # type: ignore[method-assign]
        self.start()
        threads = [
            Thread(target=self._work, args=(number,), name=f"wsgiserv-request-{number}", daemon=True)
            for number in range(1, self.cfg.threads)
        ]
        for thread in threads:
            thread.start()
        try:
            self._work(0)
            for thread in threads:
                thread.join(0.0 if self.leave_now else 1.0)
        finally:
            self.reactor.close()

    def _work(self, number: int) -> None:
        """Lead, serve, and queue up for the lead again; the life of one thread."""
        cell = min(number, self.boot.slot.cells - 1)
        while True:
            with self._baton:
                connection = self._next()
            if connection is None:
                return
            try:
                connection.run(cell)
            except Exception:  # a fault of ours must not cost the thread
                self.log.exception("the request of %s failed in the server", connection.name)
                connection.close()
            if self.context.access is not None:
                self.context.access.flush()  # the leader may sleep for a second
            if self.retiring:
                self._wake()

    def _next(self) -> Connection | None:
        """Poll until a request is ready; None when the worker has left. The baton is held."""
        ready = self._ready
        while not ready:
            if self.is_done:
                return None
            try:
                self.turn(1.0)
            except Exception:  # a fault of ours must not cost the thread
                self.log.exception("the worker's loop failed")
        return ready.popleft()

    def _wake(self) -> None:
        """Let the leader look again: its poll does not see what another thread has queued."""
        try:
            self._wakeup_writer.send(b"\0")
        except BlockingIOError:
            pass  # it is about to wake already
