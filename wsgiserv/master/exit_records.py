"""Accounting for the dead: what is looked at while workers live, and written down when one has died.

Owns: `Coroner`: the samples of memory, the OOM killer's counters, the certificates that are kept, the logs' lines.
Must not know: how workers are reaped, what a certificate says.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from os import WIFSIGNALED, WTERMSIG
from signal import SIGKILL
from time import time
from typing import Final

from wsgiserv.logs.access import KILLED, NO_RESPONSE, log_lost_requests
from wsgiserv.master.classify_exit import certify
from wsgiserv.master.crash_dump_file import Stacks
from wsgiserv.master.crash_report import Certificate
from wsgiserv.master.oom import OomWatch
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.process import rss_of

__all__ = ["Coroner"]

_LOOK_EVERY_S: Final = 1.0
_KEPT: Final = 20
# getrusage(2): ru_maxrss is in KiB, but in bytes on macOS.
_MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024


class Coroner:
    """Makes the certificates of one master.

    Args:
        log: the error log.
        oom: the OOM killer's counters.
        measure: returns the resident memory of a process in bytes, 0 when it is unknown.

    Attributes:
        certificates: the last ones, oldest first.
    """

    def __init__(
        self,
        log: logging.Logger,
        oom: OomWatch | None = None,
        measure: Callable[[int], int] = rss_of,
    ) -> None:
        self.certificates: deque[Certificate] = deque(maxlen=_KEPT)
        self._log = log
        self._oom = oom or OomWatch()
        self._measure = measure
        self._next_look = 0.0

    def look(self, workers: Iterable[WorkerHandle], now: float) -> None:
        """Note the workers' memory, once a second: 10 µs for each. Called at every turn of the master's loop."""
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY_S
        self._oom.look(now)
        for worker in workers:
            size = self._measure(worker.pid)
            if size:  # a process that is being torn down has none
                worker.rss_bytes, worker.measured_at = size, now

    def is_killed_by_others(self, wait_status: int | None, now: float) -> bool:
        """Whether somebody has sent SIGKILL: not the kernel for want of memory, as far as the system tells."""
        if wait_status is None or not WIFSIGNALED(wait_status) or WTERMSIG(wait_status) != SIGKILL:
            return False
        return not self._oom.suspects(now)

    def examine(self, worker: WorkerHandle, wait_status: int | None, max_rss: int, now: float) -> Certificate:
        """Write a certificate into the error log, the lost requests into the access log. Never raises.

        Args:
            worker: who has been reaped; its slot is still its own.
            wait_status: what wait4(2) returned; None is unknown.
            max_rss: ``ru_maxrss`` of wait4(2), 0 when it is unknown.
            now: ``time.monotonic()`` seconds.
        """
        certificate = certify(
            worker,
            wait_status,
            now,
            time(),
            max_rss_bytes=max_rss * _MAXRSS_UNIT,
            stacks=worker.last_words.read() if worker.last_words is not None else Stacks(),
            blame=partial(self._oom.blame, now),
        )
        self.certificates.append(certificate)
        self._log.error("%s", certificate.text())
        was_late = worker.abort_at is not None or worker.kill_at is not None
        status = KILLED if was_late and certificate.cause == "server" else NO_RESPONSE
        if worker.cfg is not None:
            log_lost_requests(worker.cfg, self._log, worker.pid, certificate.lost, status)
        return certificate
