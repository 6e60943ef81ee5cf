# A worker class on gunicorn's gthread worker, by its path, with signals of its own.
#: get /
#: get /flags
#: worker USR2
#: wait USR2
#: get /

worker_class = "company_workers.SignalThreadWorker"
threads = 4
workers = 1
