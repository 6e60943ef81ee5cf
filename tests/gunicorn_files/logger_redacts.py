# A logger class in the file itself: tokens in the query are not written.
#: get /?token=secret&page=2
#: get / Referer: https://shop.example/?token=secret

import re

from gunicorn.glogging import Logger

SECRET = re.compile(r"(token=)[^& \"]+")


class RedactingLogger(Logger):
    def atoms(self, resp, req, environ, request_time):
        atoms = super().atoms(resp, req, environ, request_time)
        return {name: SECRET.sub(r"\1***", value) if isinstance(value, str) else value for name, value in atoms.items()}


logger_class = RedactingLogger
accesslog = "-"
access_log_format = '%(m)s %(U)s %(q)s "%(f)s" "%(r)s"'
