# A file tells the load balancer that the server is ready; on_exit removes it.
#: get /
#: content ready
#: file ready
#: log shop is up with \d+ workers?

import os

READY = os.path.join(os.path.dirname(__file__), "ready")


def when_ready(server):
    with open(READY, "w") as file:
        file.write("ready\n")
    server.log.info("shop is up with %d workers", server.cfg.workers)


def on_exit(server):
    os.unlink(READY)
