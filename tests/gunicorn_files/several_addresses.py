# TCP and a Unix socket at once, as a list.
#: bind shop.sock
#: get /
#: wait ready 2

from record import note

bind = ["127.0.0.1:0", "unix:shop.sock"]


def when_ready(server):
    note("ready", len(server.LISTENERS), len(server.cfg.address))
