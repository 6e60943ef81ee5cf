# A worker class on gunicorn's gevent worker, that patches more than the library.
#: get /
#: get /flags

worker_class = "company_workers.GreenWorker"
worker_connections = 100
