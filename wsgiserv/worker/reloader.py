"""Watches the files of the application (``--reload``).

Both engines compare modification time and size. The clock wakes one, the kernel the other, by way of the watchfiles
package.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from os import stat
from time import monotonic, time_ns

from wsgiserv.errors import ApplicationError, ConfigError
from wsgiserv.safe_open import absolute, working_directory
from wsgiserv.unpatched import allocate_lock, patched_by, sleep, start_thread
from wsgiserv.user_code import is_a, own_attribute

# Modification time in ns, and size; None of a file that is not there.
_Signature = tuple[int, int] | None

_IN_TRACEBACK = re.compile(r'^\s*File "([^"\n]+)"', re.MULTILINE)

# Not the application's code, often many thousand files.
_SKIPPED_DIRECTORIES = frozenset(("__pycache__", "node_modules", "site-packages"))

# The time stamps of files are those of the kernel's last tick (100 to 1,000 a second): earlier than the clock's time.
_TICK_NS = 10_000_000
# How long the end of the process may wait for watchfiles, which looks at its stop event each 50 ms; and how often it
# looks whether that has come.
_END_S = 1.0
_END_LOOK_S = 0.005

# A file counts as changed when it differs from what the process has read. An import may take seconds, and the file may
# be saved meanwhile. So each source file is noted here, by absolute path, before the import system reads it.
_noted: dict[str, _Signature] = {}


def note_imports() -> None:
    """Note each source file just before it is imported, from now on. May be called again."""
    # The loader calls this before it reads the source, or the bytecode in its place.
    SourceFileLoader.path_stats = _noting_path_stats  # type: ignore[method-assign]


_path_stats = SourceFileLoader.path_stats


def _noting_path_stats(self: SourceFileLoader, path: str) -> Mapping[str, object]:
    where = absolute(path)
    _noted[where] = _signature(where)
    return _path_stats(self, path)


class Reloader:
    """Calls ``on_change(path)`` when a file has changed, in a thread of its own.

    Make it before the application is imported: a chosen file has changed when it differs later from now.

    Args:
        on_change: called in the watching thread, a native one even under gevent: it must only signal (write to a pipe,
            send a signal), and must not raise. Called again for later changes.
        extra_files: beside the files of all loaded modules: files (the configuration file, say), directories
            (everything below them) and glob patterns (``**`` included). Files may appear there later.
        engine: ``poll``, ``watchfiles``, or ``auto``: watchfiles where it is installed. In a process patched by gevent
            or eventlet all of them poll.
        interval_s: seconds between two looks.
        noted: how some of ``extra_files`` were when they were read, by path.

    Raises:
        ConfigError: watchfiles is asked for and not installed.
    """

    def __init__(
        self,
        on_change: Callable[[str], None],
        extra_files: Sequence[str],
        engine: str,
        interval_s: float = 1.0,
        noted: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        installed = importlib.util.find_spec("watchfiles") is not None
        if engine == "watchfiles" and not installed:
            raise ConfigError(
                "WS1159 reload_engine = 'watchfiles': the package watchfiles is not installed. "
                "Accepted: pip install wsgiserv[reload], or reload_engine = 'poll'."
            )
        self._on_change = on_change
        self._interval_s = interval_s
        self._may_use_watchfiles = installed and engine != "poll"
        self._made_at_ns = time_ns() - _TICK_NS
        self._files: list[str] = []
        self._patterns: list[str] = []
        self._roots: list[str] = []
        self._python_below: str | None = None
        for entry in extra_files:
            path = absolute(entry)
            if os.path.isdir(path):
                self._roots.append(path)
            elif glob.has_magic(entry) and not os.path.exists(path):  # a file may have such a name
                self._patterns.append(path)
            else:
                self._files.append(path)
        self._seen: dict[str, _Signature] = {
            path: (noted or {}).get(path) or _signature(path) for path in self._chosen_files()
        }
        # Gone at the last look.
        self._missing: set[str] = set()
        self._stopped = self._is_in_watchfiles = False

    def watch_broken(self, failed_import: ApplicationError) -> None:
        """Watch the files of its traceback, and all Python files here: a change of these may mend a failed import.

        Args:
            failed_import: the failure.
        """
        # The broken module is not among the loaded ones: the import system drops it.
        self._files += [absolute(f) for f in _IN_TRACEBACK.findall(failed_import.traceback)]
        self._python_below = working_directory()
        for path in self._chosen_files():
            if path not in self._seen:
                self._seen[path] = self._as_read(path)

    def _as_read(self, path: str) -> _Signature:
        """Return how a file was when this process read it, or may have looked for it."""
        if path in _noted:
            return _noted[path]
        # A copy can have any modification time; no call sets the time of the last change of status (inode(7)).
        with suppress(OSError, ValueError):
            if stat(path).st_ctime_ns > self._made_at_ns:
                return None
        return _signature(path)

    def start(self) -> None:
        """Start the watching thread. It does not keep the process alive, and finds changes up to now soon."""
        self._note_modules()
        # In a process that gevent has patched, watchfiles' own imports and locks in a native thread wait for
        # a hub that never runs there; looking at the clock needs no lock.
        usable = self._may_use_watchfiles and not patched_by()
        start_thread(self._run_watchfiles if usable else self._run_poll, name="wsgiserv-reloader")

    def stop(self) -> None:
        """Stop watching, at the next look. `on_change` may be running for the last time."""
        self._stopped = True

    def end(self) -> None:
        """Stop watching, and wait until the thread has left watchfiles: the process is about to end."""
        # The interpreter ends its threads where they wait for it. One in compiled Rust aborts the process then.
        self.stop()
        until = monotonic() + _END_S
        while self._is_in_watchfiles and monotonic() < until:
            sleep(_END_LOOK_S)

    def is_set(self) -> bool:
        """Return whether `stop` was called. Of watchfiles' stop event."""
        return self._stopped

    # --- what counts as a change

    def _look(self) -> str | None:
        """Compare all files with the last look; return one changed since, or None."""
        changed = None
        self._note_modules()
        for path in self._chosen_files():
            self._seen.setdefault(path, None)
        missing, self._missing = self._missing, set()
        for path, before in self._seen.items():
            now = _signature(path)
            if now is None and before is not None and path not in missing:
                self._missing.add(path)  # an editor may be between unlink and rename: look once more
            elif now != before:
                self._seen[path] = now
                changed = path
        return changed

    def _note_modules(self) -> None:
        """Note the modules imported since the last look, as they were when they were read."""
        for module in list(sys.modules.values()):  # it may hold anything
            # The module's own __getattr__ would import a lazy module.
            file = own_attribute(module, "__file__")
            if is_a(file, str) and file:
                path = absolute(file[:-1] if file.endswith((".pyc", ".pyo")) else file)
                if path not in self._seen:
                    self._seen[path] = _noted[path] if path in _noted else _signature(path)  # None may be noted

    def _chosen_files(self) -> Iterator[str]:
        yield from self._files
        for pattern in self._patterns:
            yield from glob.iglob(pattern, recursive=True)
        for root in self._roots:
            yield from _below(root, "")
        if self._python_below is not None:
            yield from _below(self._python_below, ".py")

    # --- the engines

    def _run_poll(self) -> None:
        # Nobody releases it: to wait for it is a sleep that gevent cannot have replaced.
        pause = allocate_lock()
        pause.acquire()
        while not self._stopped:
            pause.acquire(timeout=self._interval_s)
            self._tell(self._look())

    def _run_watchfiles(self) -> None:
        # No inotify watches left, or a file system without them: the clock always works.
        self._is_in_watchfiles = True
        with suppress(Exception):
            self._watch()
        self._is_in_watchfiles = False
        self._run_poll()

    def _watch(self) -> None:
        from watchfiles import watch

        while not self._stopped:
            directories = self._directories()
            next_look = monotonic() + self._interval_s
            for changes in watch(
                *directories,
                watch_filter=None,
                debounce=200,
                stop_event=self,
                rust_timeout=max(1, int(self._interval_s * 1000)),
                yield_on_timeout=True,
                raise_interrupt=False,
                recursive=False,
                ignore_permission_denied=True,
            ):
                if changes or self._missing or monotonic() >= next_look:
                    self._tell(self._look())
                    next_look = monotonic() + self._interval_s
                if self._directories() != directories:
                    break  # a module was imported from elsewhere, or a directory was made: watch it, too

    def _tell(self, path: str | None) -> None:
        if path is not None and not self._stopped:
            self._on_change(path)

    def _directories(self) -> set[str]:
        """Return the directories with a watched file, and those where one may appear."""
        # The kernel reports a change of a link's target in the target's directory only.
        found = {os.path.dirname(each) for path in self._seen for each in (path, os.path.realpath(path))}
        for root in filter(None, (*self._roots, self._python_below)):
            found.update(directory for directory, _ in _walk(root))
        return {directory for directory in found if os.path.isdir(directory)}


def _signature(path: str) -> _Signature:
    try:
        status = stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size


def _walk(root: str) -> Iterator[tuple[str, list[str]]]:
    for directory, directories, files in os.walk(root):
        # A virtual environment in the project: its packages do not change while it is worked on.
        if "pyvenv.cfg" in files and directory != root:
            directories.clear()
            continue
        directories[:] = [d for d in directories if d[0] != "." and d not in _SKIPPED_DIRECTORIES]
        yield directory, files


def _below(root: str, suffix: str) -> Iterator[str]:
    for directory, files in _walk(root):
        for name in files:
            # Not what editors write beside a file, before it is saved.
            if name.endswith(suffix) and not name.endswith((".pyc", ".swp", "~")):
                yield os.path.join(directory, name)
