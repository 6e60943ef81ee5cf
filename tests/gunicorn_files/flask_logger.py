# Flask's log goes where gunicorn's goes, and has its level.
#: app site_flask:app
#: get /
#: logfile error.log index is asked for

errorlog = "error.log"
loglevel = "info"
accesslog = "access.log"
