# A pid file, the heartbeat in memory, uploads in a directory of one's own.
#: get /
#: content shop.pid
#: mode shop.pid
#: file shop.pid

import os
import tempfile

pidfile = "shop.pid"
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
tmp_upload_dir = tempfile.gettempdir()
