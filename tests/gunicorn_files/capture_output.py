# What the application prints goes to the error log's file.
#: get /print
#: logfile error.log printed by the shop|complained by the shop

errorlog = "error.log"
capture_output = True
enable_stdio_inheritance = True
loglevel = "info"
