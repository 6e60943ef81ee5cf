# The access log is a file, reopened after USR1 as logrotate asks for.
#: args --access-logfile requests.log
#: distinct
#: get /
#: rotate requests.log
#: file requests.log.1
#: file requests.log

access_log_format = "%(m)s %(U)s"
