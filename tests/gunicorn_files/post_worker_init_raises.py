# A check of the loaded application raises: the same.
#: distinct
#: ends
#: log RuntimeError: settings are unsafe

def post_worker_init(worker):
    if worker.app.callable is not None:
        raise RuntimeError("settings are unsafe")
