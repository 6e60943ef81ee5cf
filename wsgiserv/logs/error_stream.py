"""`wsgi.errors`: a text stream into the error log."""

from __future__ import annotations

import io
import logging
from _thread import get_ident
from contextlib import suppress
from typing import Any, TextIO, cast

from wsgiserv.logs.error import report_fault
from wsgiserv.logs.handlers import handlers_of
from wsgiserv.logs.streams import LogText

# An application that never ends its line gets it written in pieces of this many characters.
_LONGEST_LINE = 65536


class _ErrorBytes(io.BufferedIOBase):
    """The ``buffer`` of a text stream: decodes bytes and writes them to the stream."""

    def __init__(self, stream: ErrorStream) -> None:
        super().__init__()
        self._stream = stream

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, data: Any) -> int:
        whole = bytes(data)
        self._stream.write(whole.decode("utf-8", "backslashreplace"))
        return len(whole)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.flush()

    def __del__(self) -> None:
        """Do nothing, where `io.IOBase` calls `close`."""


class ErrorStream(LogText):
    """``wsgi.errors``: a text stream into the error log, without its line format (PEP 3333).

    One object serves a whole worker. `write` raises TypeError for anything but str; no other error reaches the
    application.
    """

    name = "<wsgi.errors>"

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log
        # Whole lines by thread, so that the two writes of a ``print(..., file=environ["wsgi.errors"])`` are not torn
        # apart by another thread's. Each thread touches its own key only, so there is no lock, which a handler that
        # switches greenlets could be caught in.
        self._unfinished: dict[int, str] = {}  # thread -> the beginning of a line

    def write(self, text: str) -> int:
        """Write ``text``; its end without a line end waits for the rest of the line, or for `flush`."""
        if not isinstance(text, str):
            raise TypeError(f"wsgi.errors takes str, not {type(text).__name__}")
        thread = get_ident()
        whole = self._unfinished.pop(thread, "") + text
        end = len(whole) if len(whole) > _LONGEST_LINE else whole.rfind("\n") + 1
        if end < len(whole):
            self._unfinished[thread] = whole[end:]
        if end:
            self._emit(whole[:end])
        return len(text)

    def flush(self) -> None:
        """Write this thread's unfinished line."""
        if begun := self._unfinished.pop(get_ident(), ""):
            self._emit(begun)

    def close(self) -> None:
        """Write this thread's unfinished line; the stream stays open."""
        self.flush()

    @property
    def buffer(self) -> io.BufferedIOBase:
        """The same log, for bytes in UTF-8."""
        return _ErrorBytes(self)

    def fileno(self) -> int:
        """Return the descriptor of the log's file or standard stream: for child processes and `faulthandler`.

        Raises io.UnsupportedOperation if the log has none (syslog, mail).
        """
        for handler in handlers_of(self._log):
            with suppress(AttributeError, OSError, ValueError):
                fd = cast("Any", handler).stream.fileno()
                if isinstance(fd, int):
                    return fd
        raise io.UnsupportedOperation("fileno")

    def _emit(self, text: str) -> None:
        name, without_stream = self._log.name, []
        for handler in handlers_of(self._log):
            stream = cast("TextIO | None", getattr(handler, "stream", None))
            if stream is None:
                without_stream.append(handler)
                continue
            with suppress(Exception):  # a full disk, a stream that was closed: not the application's fault
                handler.acquire()
                try:
                    stream.write(text)
                    stream.flush()
                finally:
                    handler.release()
        # syslog, mail, a queue: they take records only
        for handler in without_stream:
            try:
                values = (text.rstrip("\n"),)
                handler.handle(self._log.makeRecord(name, logging.ERROR, "wsgi.errors", 0, "%s", values, None))
            except (Exception, SystemExit) as error:
                report_fault(f"the handler {type(handler).__name__} of the logger {name}", error)
