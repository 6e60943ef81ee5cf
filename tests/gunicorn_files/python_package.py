# The configuration is a module of the application's package.
#: config python:shopconf.gunicorn
#: get /

workers = "not read"
