"""Defines a generation: one reading of the configuration, with its sockets and slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsgiserv.config.settings import Settings
from wsgiserv.master.pidfile import PidFile
from wsgiserv.master.slots import SlotPool
from wsgiserv.net.listener import Listener

if TYPE_CHECKING:
    from wsgiserv.net.tls_context import ContextSeries  # imports ssl, which a plain server does not need


# By identity: two readings of one configuration are two generations.
@dataclass(eq=False)
class Generation:
    """The starting values of one generation's workers.

    Attributes:
        number: the serial number, from 1.
        settings: the configuration.
        listeners: its listening sockets; those of the generation before, where `bind` is the same.
        pool: where its workers get their slots.
        application: the application, where the master itself has preloaded it; or None.
        preload: loads the application in a zygote; None: its workers are forked by the master.
        began_at: when its start or reload began, ``time.monotonic()`` seconds.
        tls_contexts: the TLS contexts of its workers; None without TLS, and where each worker makes its own.
        workers: how many workers it is to have (TTIN and TTOU change it).
        pid_file: a new pid file to replace the old one when this generation is in force.
    """

    number: int
    settings: Settings
    listeners: list[Listener]
    pool: SlotPool
    application: Callable[..., Any] | None
    preload: Callable[[], Callable[..., Any]] | None
    began_at: float
    tls_contexts: ContextSeries | None
    # Changed by TTIN, TTOU and the load, while the settings stay as they were read.
    workers: int
    pid_file: PidFile | None = None
