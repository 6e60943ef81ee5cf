# logconfig_dict gives some keys only: the rest is gunicorn's own default configuration.
#: get /gunicorn-log
#: get /log
#: out GET|order|written|is shown
#: log \|written through.*

logconfig_dict = {
    "formatters": {"generic": {"format": "%(levelname)s|%(message)s", "class": "logging.Formatter"}},
}
access_log_format = "%(m)s %(U)s"


def when_ready(server):
    server.log.info("INFO is shown too")
