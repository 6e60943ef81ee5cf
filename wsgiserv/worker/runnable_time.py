"""How much of the processor this process wants.

Owns: `runnable_time_s`.
Must not know: what is made of it.
"""

from __future__ import annotations

import os
from time import process_time

__all__ = ["runnable_time_s"]

_TASKS = "/proc/self/task"


def runnable_time_s() -> float:
    """Return for how many seconds the threads that live now have run, or have waited for a processor to run on.

    Who waits for a processor has something to do: where there are more processes than processors, a worker that never
    pauses gets less than all the time of one. proc(5), ``/proc/[pid]/task/[tid]/schedstat``; 20 µs for one thread.
    Where there is no such file: the time that the process has run. Never raises.
    """
    wanted_ns = 0
    try:
        tasks = os.listdir(_TASKS)
    except OSError:
        tasks = []
    for task in tasks:
        try:
            with open(f"{_TASKS}/{task}/schedstat", "rb", 0) as file:
                running, waiting, _ = file.read().split()
        except (OSError, ValueError):
            continue  # the thread has just ended
        wanted_ns += int(running) + int(waiting)
    return wanted_ns / 1e9 if wanted_ns else process_time()
