# A worker class that times handle_request, a method of gunicorn's own way to serve.
#: get /

import time

from gunicorn.workers.sync import SyncWorker

from record import note


class TimedWorker(SyncWorker):
    def handle_request(self, listener, req, client, addr):
        begin = time.monotonic()
        super().handle_request(listener, req, client, addr)
        note("timed", req.path, time.monotonic() - begin < 20)


worker_class = TimedWorker
