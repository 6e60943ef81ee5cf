# A worker class on gunicorn's sync worker: work before the loop, a metric at each sign of life.
#: get /
#: get /

from gunicorn.workers.sync import SyncWorker

from record import note


class WarmWorker(SyncWorker):
    notified = False

    def init_process(self):
        note("init_process", self.age, self.cfg.workers, type(self).__name__)
        super().init_process()

    def load_wsgi(self):
        super().load_wsgi()
        note("loaded", callable(self.wsgi))

    def notify(self):
        if not self.notified:
            self.notified = True
            note("first notify")
        super().notify()


worker_class = WarmWorker
