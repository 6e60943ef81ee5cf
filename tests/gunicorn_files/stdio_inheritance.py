# What the application prints stays on the standard streams.
#: get /print
#: log complained by the shop

enable_stdio_inheritance = True
accesslog = None
