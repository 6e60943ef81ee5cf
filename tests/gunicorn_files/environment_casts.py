# Everything from the environment, with casts.
#: env GUNICORN_WORKERS=1
#: env GUNICORN_TIMEOUT=45
#: env GUNICORN_PRELOAD=true
#: env GUNICORN_MAX_REQUESTS=0
#: get /
#: wait values

import os

from record import note


def env_bool(name, default="false"):
    return os.getenv(name, default).lower() in ("1", "true", "yes")


workers = int(os.getenv("GUNICORN_WORKERS", "4"))
timeout = int(os.getenv("GUNICORN_TIMEOUT", 30))
graceful_timeout = int(os.getenv("GUNICORN_GRACEFUL_TIMEOUT") or 25)
preload_app = env_bool("GUNICORN_PRELOAD")
reload = env_bool("GUNICORN_RELOAD")
max_requests = int(os.getenv("GUNICORN_MAX_REQUESTS", "1000"))
keepalive = os.getenv("GUNICORN_KEEPALIVE", "5")
loglevel = os.getenv("GUNICORN_LOGLEVEL", "INFO")
forwarded_allow_ips = os.getenv("GUNICORN_FORWARDED", "*")
proc_name = os.getenv("GUNICORN_NAME", None)


def on_starting(server):
    cfg = server.cfg
    note("values", cfg.workers, cfg.timeout, cfg.graceful_timeout, cfg.preload_app, cfg.reload, cfg.max_requests)
    note(int(cfg.keepalive), cfg.loglevel.lower(), cfg.forwarded_allow_ips, cfg.proc_name)
