# Root's server with workers of another user.
#: root
#: get /user
#: wait fork

import os

from record import note

user = "nobody"
group = "nogroup"
initgroups = False
open("notes", "a").close()
os.chmod("notes", 0o666)


def when_ready(server):
    note("ready", server.cfg.uid, server.cfg.gid)


def post_fork(server, worker):
    note("fork", os.geteuid())
