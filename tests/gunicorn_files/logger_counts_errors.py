# A logger class overrides error, exception and critical to count them.
#: get /error
#: get /
#: wait counted

from gunicorn import glogging

from record import note


class CountingLogger(glogging.Logger):
    def exception(self, msg, *args, **kwargs):
        note("counted an exception")
        super().exception(msg, *args, **kwargs)

    def access(self, resp, req, environ, request_time):
        note("access", resp.status, req.method, req.path, environ["REQUEST_METHOD"], request_time.total_seconds() < 20)
        super().access(resp, req, environ, request_time)


logger_class = CountingLogger
accesslog = "-"
access_log_format = "%(s)s"
