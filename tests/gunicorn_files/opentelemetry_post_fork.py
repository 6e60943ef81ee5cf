# OpenTelemetry: providers with threads of their own are made after the fork.
#: get /
#: log Worker spawned
#: log tracing is configured: \w+

import threading

workers = 1


def init_tracing():
    from opentelemetry import trace

    trace.set_tracer_provider("provider of " + threading.current_thread().name)


def post_fork(server, worker):
    server.log.info("Worker spawned (pid: %s)", worker.pid)
    init_tracing()
    server.log.info("tracing is configured: %s", worker.cfg.proc_name or "shop")
