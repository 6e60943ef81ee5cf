"""Keeps the data that all responses of one worker share: head templates, the Date line, keep-alive, warnings."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from time import time
from typing import Final

from wsgiserv.http.response import HeadTemplates, date_line

# An application may make up header names without end: a worker warns about this many.
_MOST_WARNED_HEADERS: Final = 64


# Read for each response: a slot is found without a look at an instance dictionary.
@dataclass(slots=True, eq=False)
class ResponseContext:
    """Data shared by all responses of one worker.

    Attributes:
        log: the error log.
        date_line: the Date header line; the one given until the first `renew_date`.
        sendfile: whether the kernel may send the files of ``wsgi.file_wrapper``.
        templates: the response heads seen so far.
        date_until: when the Date line becomes too old, ``time.time()``.
        keep_open: whether connections may stay open after a response.
    """

    log: logging.Logger
    date_line: bytes
    sendfile: bool = True
    templates: HeadTemplates = field(default_factory=HeadTemplates)
    date_until: float = inf
    # Read when a head is made, so that a response says `close` even if the worker starts to leave during the call.
    keep_open: bool = True
    _warned_headers: dict[str, object] = field(default_factory=dict)

    def allow_keep_alive(self, allowed: bool) -> None:
        """Let connections stay open, or not, after the responses whose heads are made from now on."""
        self.keep_open = allowed

    def renew_date(self, now: float) -> None:
        """Make the Date line of ``now`` (``time.time()``). The worker's loop calls it every second."""
        self.date_line = date_line(now)
        self.date_until = now // 1.0 + 1.0

    def date(self) -> bytes:
        """Return the current Date line, also in a call that outlasts the loop's last renewal."""
        # The loop of a sync worker stands still during a call: after a long one its Date would be old.
        now = time()
        if now >= self.date_until:
            self.renew_date(now)
        return self.date_line

    def warn_dropped(self, names: Iterable[str], request_line: bytes) -> None:
        """Warn about headers of the application that are not sent, once per worker and name.

        Args:
            names: the headers' names.
            request_line: the line of the answered request, empty when there is none.
        """
        for name in names:
            mark = object()
            # setdefault: two threads may be here at once.
            if (
                len(self._warned_headers) >= _MOST_WARNED_HEADERS
                or self._warned_headers.setdefault(name.lower(), mark) is not mark
            ):
                continue
            method, _, target = request_line.decode("ascii", "backslashreplace").partition(" ")
            path = target.partition(" ")[0].partition("?")[0]
            self.log.warning(
                "WS1600 %s: response header %s dropped: it is about the connection, which is the server's (PEP 3333): "
                "remove it from the application (logged once per worker and header)",
                f"{method} {path}" if path else "The application",
                name,
            )
