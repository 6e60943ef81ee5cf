# What hooks read of the configuration: derived values, the class, all settings.
#: get /
#: wait done

import os

from record import note

workers = 1
raw_env = ["A=1"]
accesslog = "-"
access_log_format = "%(U)s"


def when_ready(server):
    cfg = server.cfg
    note(cfg.worker_class_str, isinstance(cfg.worker_class, type), cfg.worker_class.__name__)
    note(cfg.address, cfg.env, bool(cfg.is_ssl), cfg.uid == os.getuid(), cfg.gid == os.getgid())
    note(cfg.settings["workers"].value, cfg.settings["timeout"].get(), "bind" in cfg.settings)
    note(cfg.settings["access_log_format"].default == cfg.access_log_format, len(cfg.settings) > 80)
    note(isinstance(cfg.logger_class, type), cfg.ssl_options["certfile"], cfg.paste_global_conf, cfg.sendfile)
    note(cfg.http_parser, cfg.spew, cfg.dirty_workers, cfg.statsd_host, cfg.syslog, cfg.reload_engine)
    note(cfg.limit_request_fields, cfg.worker_connections, cfg.threads, cfg.backlog, cfg.umask, cfg.tmp_upload_dir)
    note("done", getattr(cfg, "no_such_setting", "none"))
