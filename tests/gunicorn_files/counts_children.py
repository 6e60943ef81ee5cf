# A program that counts the master's children, with preload_app.
#: get /
#: children 2
#: signal TTIN
#: children 3
#: signal TTOU
#: children 2

preload_app = True
preload_in = "master"
workers = 2
