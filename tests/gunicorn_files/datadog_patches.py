# Datadog's tracer patches in each worker when the application is loaded.
#: get /
#: log ddtrace is on

import os

os.environ.setdefault("DD_SERVICE", "shop")


def post_worker_init(worker):
    from ddtrace import patch_all

    patch_all(requests=True, psycopg=False)
    worker.log.info("ddtrace is on for worker %s of %s", worker.pid, os.environ["DD_SERVICE"])
