# raw_env reaches the application, and the master's hooks.
#: get /env/API_KEY
#: get /env/EMPTY
#: get /env/PAIRS
#: wait env

import os

from record import note

raw_env = ["API_KEY=abc", "EMPTY=", "PAIRS=a=1,b=2"]


def when_ready(server):
    note("env", sorted(server.cfg.env.items()), os.environ.get("PAIRS"))


def post_fork(server, worker):
    note("worker", os.environ.get("API_KEY"), worker.cfg.env["PAIRS"])
