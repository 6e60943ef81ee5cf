# The file named with its scheme, as an orchestrator's template has it.
#: config file:gunicorn.conf.py
#: get /

workers = 1
accesslog = "-"
access_log_format = "%(U)s %({x-none}i)s"
