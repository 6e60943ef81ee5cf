# PasteDeploy, its application by name, a value for its configuration.
#: app -
#: args --paste shop.ini#named --paste-global region=north
#: get /

accesslog = "-"
access_log_format = "%(U)s"
