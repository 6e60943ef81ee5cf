"""A master with a worker that serves nothing but obeys the contract: ``python fakeserver.py [flags] module:app``.

The file ``behaviour`` in the working directory, read by each worker when it boots, says how it behaves:

    ready               boots and obeys
    fail STATUS         reports that it cannot boot, and exits with STATUS
    die                 is killed by SIGSEGV while booting
    die-later           is ready, and exits with status 7 at once
    hang                is ready, has a request in flight, and gives no sign of life
    stubborn            is ready, and ignores TERM and QUIT
    accept              is ready, and answers each connection with its generation and pid
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from wsgiserv.boot import WorkerBoot
from wsgiserv.config.loader import load
from wsgiserv.errors import ApplicationError, WsgiservError
from wsgiserv.hooks import call_hook
from wsgiserv.logs.error import open_error_log, reopen_error_log
from wsgiserv.master.master import Master
from wsgiserv.scoreboard import HEARTBEAT, REQUESTS
from wsgiserv.worker.preload import preload_application


def fake_worker(boot: WorkerBoot) -> int:
    told: list[int] = []
    behaviour, _, argument = Path("behaviour").read_text().strip().partition(" ")
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
        signal.signal(number, lambda number, frame: told.append(number))
    signal.signal(signal.SIGUSR1, lambda number, frame: reopen_error_log())
    call_hook(boot.log, "post_fork", boot.settings.post_fork, boot.server, boot.handle)
    boot.ready.report("loading")
    if behaviour == "fail":
        boot.ready.report("failed", "it is broken", "Traceback of the user\n", int(argument))
        return int(argument)
    if behaviour == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    boot.slot.seconds[HEARTBEAT] = time.monotonic()
    if behaviour != "die-later":
        boot.slot.words[REQUESTS] = 5
    boot.log.info("worker %d serves for generation %d", os.getpid(), boot.generation)
    boot.ready.report("ready")
    if behaviour == "die-later":
        return 7
    if behaviour == "hang":
        boot.slot.begin(0, time.monotonic(), b"192.0.2.1", b"id-1", b"GET /slow\x1b HTTP/1.1")
    watched: list[object] = [boot.lifeline]
    if behaviour == "accept":
        watched += [socket.socket(fileno=os.dup(listener.fileno())) for listener in boot.listeners]
    while not told or behaviour == "stubborn":
        if behaviour != "hang":
            boot.slot.seconds[HEARTBEAT] = time.monotonic()
        for one in select.select(watched, [], [], 0.05)[0]:
            if one == boot.lifeline:
                return 0  # the master is gone
            try:
                client, _ = one.accept()
            except BlockingIOError:
                continue
            client.sendall(b"%d %d\n" % (boot.generation, os.getpid()))
            client.close()
    return 0


def main() -> int:
    argv, environ, directory = sys.argv[1:], dict(os.environ), os.getcwd()
    loaded = load(argv, environ, directory)
    # In one write(2): several processes share the pipe.
    atexit.register(lambda: os.write(1, f"atexit in {os.getpid()}\n".encode()))
    master = Master(
        loaded.settings,
        notices=loaded.notices,
        reload_settings=lambda: load(argv, environ, directory),
        worker_main=fake_worker,
        log=open_error_log(loaded.settings),
        preload_application=preload_application,
    )
    try:
        return master.run()
    except WsgiservError as error:
        if isinstance(error, ApplicationError):
            print(error.traceback, file=sys.stderr)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
