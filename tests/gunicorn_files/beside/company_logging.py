"""A company's logger classes."""

import json
import logging

from gunicorn import glogging


class QuietLogger(glogging.Logger):
    """Leaves the load balancer's checks out."""

    def setup(self, cfg):
        super().setup(cfg)
        self.error_log.info("company log is set up")

    def access(self, resp, req, environ, request_time):
        if req.path in ("/health", "/healthz"):
            return
        super().access(resp, req, environ, request_time)


class AtomsLogger(glogging.Logger):
    """Has more atoms."""

    def atoms(self, resp, req, environ, request_time):
        atoms = super().atoms(resp, req, environ, request_time)
        atoms["status_class"] = str(atoms["s"])[0] + "xx"
        atoms["has_session"] = "session=" in environ.get("HTTP_COOKIE", "")
        atoms["request_size"] = sum(len(name) for name, _ in req.headers if name == "HOST")
        return atoms

    def now(self):
        return "2024-01-01T00:00:00Z"


class JsonFormatter(logging.Formatter):
    def format(self, record):
        return json.dumps({"level": record.levelname, "logger": record.name, "message": record.getMessage()})


class JsonLogger(glogging.Logger):
    """Writes JSON."""

    def setup(self, cfg):
        super().setup(cfg)
        self._set_handler(self.error_log, cfg.errorlog, JsonFormatter())
        for handler in self.access_log.handlers:
            handler.setFormatter(JsonFormatter())
