# A logger class adds atoms of its own, and writes times in ISO form.
#: get / Cookie: session=1
#: get /status/503

accesslog = "-"
logger_class = "company_logging.AtomsLogger"
access_log_format = "%(t)s %(status_class)s %(has_session)s %(request_size)s %(s)s"
