# Sentry is initialised in the worker and sends what it has before the worker exits.
#: get /

from record import note

SENTRY_DSN = ""
graceful_timeout = 10


def post_fork(server, worker):
    import sentry_sdk

    sentry_sdk.init(dsn=SENTRY_DSN, traces_sample_rate=0.1, release="shop@1")


def worker_exit(server, worker):
    import sentry_sdk

    sentry_sdk.flush(timeout=2)
    note("exit of", worker.pid == __import__("os").getpid())
