# The application lies in a directory below.
#: app inner:app
#: bind tcp
#: get /cwd
#: get /

chdir = "project"
accesslog = "-"
access_log_format = "%(U)s"
