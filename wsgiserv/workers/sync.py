"""The ``sync`` worker: one thread, one application call at a time, any number of connections.

Owns: its loop.
Must not know: HTTP, the master.
"""

from __future__ import annotations

from wsgiserv.boot import WorkerBoot
from wsgiserv.net.connection import Connection
from wsgiserv.workers.reactorworker import ReactorWorker

__all__ = ["SyncWorker"]


class SyncWorker(ReactorWorker):
    """Runs the application in the loop's own thread."""

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        self.run_request = Connection.run

    def serve(self) -> None:
        """Run the loop until the worker has left."""
        self.start()
        try:
            while not self.is_done:
                self.turn(1.0)
        finally:
            self.reactor.close()
