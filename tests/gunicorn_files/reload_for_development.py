# Development: workers are replaced when a file changes.
#: get /
#: reloaded shop.py
#: get /

from glob import glob

reload = True
reload_engine = "poll"
reload_extra_files = glob("static/*.css") + ["templates/index.html"]
loglevel = "debug"
workers = 1
