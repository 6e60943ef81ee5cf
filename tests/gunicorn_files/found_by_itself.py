# gunicorn.conf.py in the directory, without a flag.
#: config -
#: get /

accesslog = "-"
access_log_format = "found %(U)s"
wsgi_app = "shop:app"
