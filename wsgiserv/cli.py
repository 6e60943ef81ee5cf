"""The command ``wsgiserv``: from the arguments to a running master, or to an answer on the terminal.

Owns: the order of starting up, what the terminal is told, the exit status of what fails before that.
Must not know: how settings are found, how anything is served.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

# Bound before a configuration file may patch these modules for gevent.
from os import close, kill, pipe, waitpid
from typing import TYPE_CHECKING

from wsgiserv import __version__
from wsgiserv.config.argv import parse
from wsgiserv.errors import ApplicationError, BootError, ConfigError, ExitStatus, WsgiservError
from wsgiserv.ipc import MessageError, MessageReader, OutcomeWriter, wait_for
from wsgiserv.library_first import LibraryFirst
from wsgiserv.preimport import import_for, import_server
from wsgiserv.process import arm, flush_standard_streams, run_in_child
from wsgiserv.unpatched import no_real_threads, patched_by

if TYPE_CHECKING:
    from wsgiserv.config.loader import Loaded
    from wsgiserv.config.settings import Settings
    from wsgiserv.master.upgrade import Invocation, OldMaster

__all__ = ["main"]

_OUR_CLASSES = ("sync", "threads", "gevent")

# Set by a master for the one that is to follow it; spelled out here, since most starts need not import that.
_UPGRADE_VARIABLE = "WSGISERV_UPGRADE"

# At a reload the master waits meanwhile: an import that hangs must not stop it for ever.
_LONGEST_IMPORT_S = 30.0
# A pipe takes them at once, whatever its size: the parent reads them when the child has ended.
_LONGEST_FACTS = 4000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        argv: the arguments without the program's name; None takes them from ``sys.argv``.

    Returns 0 when it stopped as told, 2 for bad usage or configuration, 3 when the workers cannot boot, 4
    when the application cannot be loaded.
    """
    arm()
    predecessor = _predecessor()
    try:
        if predecessor is not None:
            _catch_signals()
        return _run(list(sys.argv[1:] if argv is None else argv), predecessor)
    except WsgiservError as error:
        if predecessor is not None:
            _ignore_signals()
            traceback = error.traceback if isinstance(error, ApplicationError) else ""
            predecessor.failed(f"{error}\n{traceback}".rstrip())
        _tell(error)
        return error.exit_status
    except KeyboardInterrupt as interrupt:
        if predecessor is not None:
            _ignore_signals()
            from wsgiserv.master.upgrade import TOLD_TO_STOP

            predecessor.failed(TOLD_TO_STOP)
        return ExitStatus.OK if _is_stop(interrupt) else ExitStatus.INTERRUPTED


def _predecessor() -> OldMaster | None:
    """Return the master that this process is to follow (SIGUSR2), if there is one."""
    if _UPGRADE_VARIABLE not in os.environ:
        return None
    from wsgiserv.master.upgrade import OldMaster

    return OldMaster.from_environ(os.environ)


def _catch_signals() -> None:
    """Let signals end the start in an orderly way, from here on until the master catches them."""
    with LibraryFirst():
        from wsgiserv.master.signals import catch_early

    catch_early()
    _hear_signals()


def _ignore_signals() -> None:
    """Ignore what a master sends to the next one that has failed: the answer to its report may come before it ends."""
    from wsgiserv.master.signals import ignore_all

    ignore_all()


def _hear_signals() -> None:
    """Undo what a parent may have left behind: blocked signals, and children that nobody can wait for.

    Both survive execve(2). Some supervisors, and parents in Java and PHP, block signals; PHP ignores SIGCHLD.
    """
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _is_stop(interrupt: KeyboardInterrupt) -> bool:
    """Whether a starting server was told to stop; else a person has interrupted a command."""
    module = sys.modules.get("wsgiserv.master.signals")
    return module is not None and isinstance(interrupt, module.StoppedWhileStarting)


def _run(argv: list[str], predecessor: OldMaster | None) -> int:
    line = parse(argv)
    if line.wants == "help":
        from wsgiserv.config.present import help_text

        print(help_text(), end="")
        return ExitStatus.OK
    if line.wants == "version":
        python = ".".join(map(str, sys.version_info[:3]))
        print(f"wsgiserv {__version__} (Python {python}, {os.uname().sysname})")
        return ExitStatus.OK

    # A snapshot, and the directory of the first start, so that a reload finds what the start has found:
    # raw_env and chdir change both for this process later.
    environ = dict(os.environ)
    asked = {given.name for given in line.given if given.raw}
    if "print_config" not in asked:
        if "check_config" in asked:
            _hear_signals()
        elif predecessor is None:
            _catch_signals()
        # What the server runs on binds the functions of os, select and so on when it is imported; a configuration
        # file may replace these by gevent's. And its directory is in front of sys.path after that.
        import_server()
    else:
        _hear_signals()
    from wsgiserv.config.loader import load, start_directory

    directory = start_directory(environ)
    # What the old master has served from may have been removed.
    known_chdir = (lambda chdir: True) if predecessor is not None else None
    loaded = load(argv, environ, directory, _patch_for_gevent, known_chdir)
    if loaded.settings.print_config:
        from wsgiserv.config.present import config_text

        print(config_text(loaded.settings, loaded.sources))
        _tell_notices(loaded)
        return ExitStatus.OK
    import_for(loaded.settings)
    application = _checked_application(loaded)
    _check_patched(loaded)
    if loaded.settings.check_config:
        _tell_notices(loaded)
        return _check(loaded, application)

    def reload_settings() -> Loaded:
        again = load(argv, environ, directory, known_chdir=loaded.settings.chdir.__eq__)
        import_for(again.settings)
        _checked_application(again)
        enter_directory(again.settings.chdir)  # anew: the name may be a link, to another release by now
        check_places(again.settings)
        _check_certificates(again.settings)
        again.notices.extend(_certificate_warnings(again.settings))
        _check_patched(again, loaded.settings.worker_class)
        return again

    from wsgiserv.app.loader import enter_directory
    from wsgiserv.master.upgrade import Invocation
    from wsgiserv.places import check_places

    return _serve(loaded, reload_settings, Invocation.of_this_process(environ, directory), predecessor)


def _serve(
    loaded: Loaded,
    reload_settings: Callable[[], Loaded],
    invocation: Invocation,
    predecessor: OldMaster | None,
) -> int:
    from wsgiserv.app.loader import enter_directory
    from wsgiserv.logs.error import open_error_log
    from wsgiserv.master.master import Master
    from wsgiserv.places import check_places
    from wsgiserv.privileges import root_warning
    from wsgiserv.worker.base import worker_main
    from wsgiserv.worker.preload import preload_application

    enter_directory(loaded.settings.chdir)  # relative paths of logs, pid file and sockets start there
    check_places(loaded.settings)
    _check_certificates(loaded.settings)
    # Here, and not among the notices of a configuration, which a reload says again.
    warning = root_warning(loaded.sources["user"])
    master = Master(
        loaded.settings,
        notices=loaded.notices,
        warnings=[*_certificate_warnings(loaded.settings), *([warning] if warning else [])],
        reload_settings=reload_settings,
        worker_main=worker_main,
        log=open_error_log(loaded.settings),
        invocation=invocation,
        old_master=predecessor,
        preload_application=preload_application,
    )
    return master.run()


def _checked_application(loaded: Loaded) -> str:
    """Return the application of a configuration that has been checked whole. Raises ConfigError."""
    application = loaded.settings.wsgi_app
    if application is None:
        raise ConfigError(
            "no application is named. Expected module:name, for example: wsgiserv hello:app\n"
            "(or wsgi_app = 'hello:app' in a configuration file). Type 'wsgiserv --help' for the flags."
        )
    _check_parts(loaded)
    return application


def _patch_for_gevent() -> None:
    """Patch this process before the code of a user runs in it. Once: a reload leaves it as it is."""
    with LibraryFirst():
        from wsgiserv.worker.gevent_worker import patch_master

        patch_master()


def _check_patched(loaded: Loaded, class_before: object = None) -> None:
    """Check what the workers are to be against what gevent has patched: they inherit it. Raises ConfigError.

    ``class_before`` is the `worker_class` that the server was started with, at a reload. Threads that are greenlets
    by then would not run while the worker waits for its sockets.
    """
    wanted, source = loaded.settings.worker_class, loaded.sources["worker_class"]
    patched = patched_by()
    if not patched:
        return
    if wanted in ("sync", "threads") and class_before == "gevent":
        raise ConfigError(
            f"worker_class = {wanted!r} ({source}): this server was started with gevent and patched for it, so "
            "workers of this class would have greenlets for threads, and gevent's sockets. Start it anew for this "
            "class: SIGUSR2, or stop and start."
        )
    if wanted == "threads":
        raise ConfigError(f"worker_class = 'threads' ({source}): {no_real_threads('the configuration file')}")


def _check_certificates(settings: Settings) -> None:
    """Check what TLS needs; the working directory is `chdir` by now, where relative paths start."""
    if settings.certfile:
        from wsgiserv.net.tls_context import check_certificates

        check_certificates(settings)


def _certificate_warnings(settings: Settings) -> list[str]:
    """Return a line for each certificate that is expired, or soon will be."""
    if not settings.certfile:
        return []
    from wsgiserv.net.certificate_dates import date_warnings

    return date_warnings(settings)


def _check_parts(loaded: Loaded) -> None:
    """Check what the floors above the configuration know about. Raises ConfigError."""
    from wsgiserv.app.loader import missing_in
    from wsgiserv.logs.format import check_format, format_advice

    settings = loaded.settings
    check_format(settings.access_log_format)
    advice = format_advice(settings.access_log_format)
    if advice:
        loaded.notices.append(advice)
    for entry in missing_in(settings.chdir, settings.pythonpath):
        loaded.notices.append(
            f"pythonpath = {entry!r} ({loaded.sources['pythonpath']}) does not exist: nothing is imported from there"
        )
    wanted, source = settings.worker_class, loaded.sources["worker_class"]
    if wanted not in _OUR_CLASSES:
        # Somebody's own class: to be found before anything starts, not by each worker.
        _check_worker_class(settings, source)
    elif wanted == "gevent":
        # Imported once, and not by each worker: they boot in a third of the time, and share the memory. Nothing is
        # patched by that, and no hub is made.
        from wsgiserv.worker.registry import resolve_worker_class

        resolve_worker_class(wanted, source=source)


def _check_worker_class(settings: Settings, source: str) -> None:
    """Raise ConfigError unless the workers will find their class.

    A path is tried in a child: the module stays out of the master, so that each worker imports it anew, and
    changed code comes with a reload.
    """
    wanted = settings.worker_class
    if not isinstance(wanted, str):
        from wsgiserv.worker.registry import resolve_worker_class

        resolve_worker_class(wanted, source=source)
        return
    trouble, how = _ask_child(lambda: _resolve_in_child(settings, source), _LONGEST_IMPORT_S)
    if trouble is None:
        raise ConfigError(
            f"worker_class = {wanted!r} ({source}): the process that imported it to try it {how}. "
            f"Import it alone to see why: python -X faulthandler -c 'import {wanted.rpartition('.')[0]}'"
        )
    if trouble:
        raise ConfigError(trouble)


def _ask_child(ask: Callable[[], str], longest_s: float) -> tuple[str | None, str]:
    """Call ``ask`` in a child; return its answer, or None and how the child ended without one.

    Args:
        ask: what it does to its process ends with that.
        longest_s: after so many seconds the child is killed.

    Raises:
        BootError: the system would not make a process.
    """
    read_end, write_end = pipe()

    def answer() -> int:
        # At a reload these are the master's, and so is the socket that its signals are queued in.
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.alarm(int(longest_s) + 1)  # in case the parent is killed, and does not end it
        text = ask()
        flush_standard_streams(wait=True)
        OutcomeWriter(write_end).tell({"answer": text})
        return 0

    try:
        pid = run_in_child(answer)
    except OSError as error:
        close(read_end)
        close(write_end)
        raise BootError(
            f"cannot fork: {error.strerror}. Expected room for more processes: see ulimit -u."
        ) from None
    close(write_end)
    reader = MessageReader(read_end)
    outcome, is_closed = None, False
    try:
        outcome, is_closed = reader.read_first(longest_s)
    except MessageError as error:
        return None, f"sent a corrupt message ({error})"
    finally:
        reader.close()
        if not is_closed:
            kill(pid, signal.SIGKILL)  # it hangs, or has nothing more to say
        _, wait_status = waitpid(pid, 0)
    if outcome is not None:
        return str(outcome.get("answer")), ""
    if not is_closed:
        return None, f"did not come back within {longest_s:g} s"
    status = os.waitstatus_to_exitcode(wait_status)
    return None, f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _resolve_in_child(settings: Settings, source: str) -> str:
    """Return why the worker class cannot be found; empty when it can be."""
    from wsgiserv.app.loader import prepare_path
    from wsgiserv.worker.registry import resolve_worker_class

    try:
        os.environ.update(dict(pair.split("=", 1) for pair in settings.raw_env))
        prepare_path(settings.chdir, settings.pythonpath)
        resolve_worker_class(settings.worker_class, source=source)
    except ConfigError as error:
        return str(error)
    return ""


def _check(loaded: Loaded, application: str) -> int:
    """Check in a child, so that what the application starts (threads, connections) ends with the check.

    Returns the status that a start would end with, for the first thing that would stop it.
    """
    from wsgiserv.master.spawn import boot_timeout_of

    flush_standard_streams(wait=True)
    read_end, write_end = pipe()
    pid = run_in_child(lambda: _check_in_child(loaded, OutcomeWriter(write_end)), ExitStatus.APPLICATION)
    close(write_end)
    longest_s = boot_timeout_of(loaded.settings)
    ended = _wait_for(pid, longest_s)
    _, wait_status = waitpid(pid, 0)
    reader = MessageReader(read_end)
    outcome, _ = reader.read_first(
        0.0
    )  # a process that the application has started may hold the other end open
    reader.close()
    status = os.waitstatus_to_exitcode(wait_status)
    module = application.partition(":")[0]
    if not ended:
        _tell(
            BootError(
                f"the application {application!r} was not loaded within {longest_s:g} s (boot_timeout). Load it alone "
                f"to see why: python -X faulthandler -c 'import {module}'"
            )
        )
        return BootError.exit_status
    if outcome is None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status} (os._exit?)"
        print(
            f"wsgiserv: error: the process that loaded the application {application!r} {how}. Load it alone to see "
            f"why: python -X faulthandler -c 'import {module}'",
            file=sys.stderr,
        )
        return ExitStatus.APPLICATION
    if status == ExitStatus.OK:
        print(f"wsgiserv: the configuration is good and the application {application!r} loads")
        print(outcome["facts"], end="")
    return status


def _wait_for(pid: int, longest_s: float) -> bool:
    """Wait for the end of a child; kill it when it takes too long (0: never), and return False."""
    if not longest_s or not hasattr(os, "pidfd_open"):
        return True
    try:
        fd = os.pidfd_open(pid)
    except OSError:  # a kernel without it
        return True
    ended = wait_for(fd, longest_s)
    close(fd)
    if not ended:
        kill(pid, signal.SIGKILL)
    return ended


def _check_in_child(loaded: Loaded, report: OutcomeWriter) -> int:
    """Check everything, say what is wrong, and report what is good; return the exit status."""
    from wsgiserv.config_check import examine

    found = examine(loaded.settings, loaded.config_path)
    for warning in found.warnings:
        print(f"wsgiserv: warning: {warning}", file=sys.stderr)
    for note in found.notes:
        print(f"wsgiserv: note: {note}", file=sys.stderr)
    for error in found.errors:
        _tell(error)
    flush_standard_streams(wait=True)
    facts = "".join(f"  {subject}: {words}\n" for subject, words in found.facts.items() if words)
    report.tell({"facts": facts[:_LONGEST_FACTS]})
    return found.errors[0].exit_status if found.errors else ExitStatus.OK


def _tell_notices(loaded: Loaded) -> None:
    for notice in loaded.notices:
        print(f"wsgiserv: note: {notice}", file=sys.stderr)


def _tell(error: WsgiservError) -> None:
    if isinstance(error, ApplicationError) and error.traceback:
        print(error.traceback.rstrip(), file=sys.stderr)
    print(f"wsgiserv: error: {error}", file=sys.stderr)
