# The configuration is a module on the path.
#: config python:settings_module
#: get /
#: wait module

workers = "not read"
