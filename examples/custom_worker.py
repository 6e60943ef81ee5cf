"""A worker class of one's own: slow parts of a site get a few threads each, and cannot take those of the others.

wsgiserv -k custom_worker:BulkheadWorker --threads 8 hello:app

Requests for ``/reports`` run in a pool of two threads, all others in a pool of ``threads``. When twenty people ask
for a report, eighteen of them wait, and the rest of the site is as quick as before. To set other limits, make a
subclass, for instance in the configuration file:

    from custom_worker import BulkheadWorker

    class worker_class(BulkheadWorker):
        limits = {"/reports": 4, "/search": 2}

docs/custom-workers.md explains the base classes.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import ClassVar

from wsgiserv.worker.event_loop_worker import EventLoopWorker


class BulkheadWorker(EventLoopWorker):
    """Runs each request in the pool of the longest prefix of its path."""

    # What the application is told in wsgi.multithread.
    multithread = True

    # How many requests at once under a prefix; each prefix has as many threads of its own.
    limits: ClassVar = {"/reports": 2}

    def __init__(self, boot):
        super().__init__(boot)
        sizes = {**self.limits, "": self.cfg.threads}
        self.pools = {
            prefix: ThreadPoolExecutor(sizes[prefix], thread_name_prefix=f"pool {prefix or '/'}")
            for prefix in sorted(sizes, key=len, reverse=True)
        }
        # A cell of the scoreboard for each thread: the log names the requests in them when the worker is killed.
        self.free_cells = [min(number, boot.slot.cells - 1) for number in range(sum(sizes.values()))]
        # What a thread of a pool writes here wakes the loop.
        self.wakeup_reader, self.wakeup_writer = os.pipe()
        os.set_blocking(self.wakeup_reader, False)
        os.set_blocking(self.wakeup_writer, False)

    def serve(self):
        """Turn the loop until the worker has left. Called once, in the main thread."""
        self.event_loop.add_callback(self.wakeup_reader, self.clear_wakeup)
        self.start()
        try:
            while not self.is_done:
                self.turn(1.0)
        finally:
            for pool in self.pools.values():
                pool.shutdown(wait=False, cancel_futures=True)
            self.event_loop.close()

    def run_request(self, connection):
        """Have a request run. Called by the loop, in the main thread, when all of the request is here."""
        path = connection.request[0].environ["PATH_INFO"]
        prefix = next(prefix for prefix in self.pools if path.startswith(prefix))
        self.pools[prefix].submit(self.run_in_pool, connection)

    def run_in_pool(self, connection):
        """Call the application and send its response. In a thread of a pool."""
        cell = self.free_cells.pop()
        try:
            Context().run(connection.run, cell)  # what it sets of context variables ends with it
        except Exception:  # a fault of the server: an exception of the application has been answered with 500
            self.log.exception("the request of %s failed in the server", connection.name)
            connection.close()
        finally:
            self.free_cells.append(cell)
            self.wake()

    def wake(self):
        """Let the loop turn: there are lines to log, a request that waits, or nothing left to do. From any thread."""
        try:
            os.write(self.wakeup_writer, b"!")
        except BlockingIOError:
            pass  # the loop is about to wake anyway

    def clear_wakeup(self):
        """Empty the pipe. Called by the loop; the turn that it was woken for does the rest."""
        os.read(self.wakeup_reader, 4096)
