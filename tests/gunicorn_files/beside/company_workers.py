"""A company's worker classes."""

import signal

from gunicorn.workers.ggevent import GeventWorker
from gunicorn.workers.gthread import ThreadWorker

from record import note


class SignalThreadWorker(ThreadWorker):
    """Writes a note on SIGUSR2."""

    def init_signals(self):
        super().init_signals()
        signal.signal(signal.SIGUSR2, self.handle_usr2)
        note("init_signals", self.cfg.threads)

    def handle_usr2(self, number, frame):
        note("USR2", self.alive)

    def handle_exit(self, sig, frame):
        note("handle_exit")
        super().handle_exit(sig, frame)


class GreenWorker(GeventWorker):
    """Patches more."""

    def patch(self):
        super().patch()
        from psycogreen.gevent import patch_psycopg

        patch_psycopg()
        note("patched")
