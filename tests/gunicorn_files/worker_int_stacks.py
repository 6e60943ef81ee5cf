# An operator interrupts a worker: the stacks of its threads go to the log.
#: worker INT
#: replaced
#: get /
#: wait worker_int
#: log worker received INT or QUIT signal

import sys
import threading
import traceback

from record import note


def worker_int(worker):
    worker.log.info("worker received INT or QUIT signal")
    id2name = {th.ident: th.name for th in threading.enumerate()}
    code = []
    for thread_id, stack in sys._current_frames().items():
        code.append(f"\n# Thread: {id2name.get(thread_id, '')}({thread_id:d})")
        for filename, lineno, name, _line in traceback.extract_stack(stack):
            code.append(f'File: "{filename}", line {lineno:d}, in {name}')
    worker.log.debug("\n".join(code))
    note("worker_int", len(code) > 2, "MainThread" in id2name.values())
