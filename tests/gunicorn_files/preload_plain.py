# preload_app with several workers: one import, copies in each.
#: get /
#: get /flags
#: any-order

preload_app = True
workers = 2
accesslog = "-"
access_log_format = "%(U)s"
