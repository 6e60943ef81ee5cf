"""Runs the command ``wsgiserv``: from the arguments to a running master, or to an answer on the terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial

# Bound before a configuration file may patch these modules for gevent.
from os import close, kill, waitpid
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TextIO

from wsgiserv import __version__
from wsgiserv.config.argv import parse
from wsgiserv.errors import ApplicationError, BootError, ConfigError, ExitStatus, WsgiservError
from wsgiserv.library_first import LibraryFirst
from wsgiserv.preimport import import_for, import_server
from wsgiserv.process import arm, flush_standard_streams, reap, run_in_child, unnamed_file
from wsgiserv.safe_open import O_PATH
from wsgiserv.unpatched import patched_by

if TYPE_CHECKING:
    from wsgiserv.config.loader import Loaded
    from wsgiserv.config.process_environment import ProcessEnvironment
    from wsgiserv.config.settings import Settings
    from wsgiserv.master.program import Program
    from wsgiserv.master.resources import Preload
    from wsgiserv.master.upgrade import Invocation, OldMaster

    # Returns the configuration. Its arguments: whether it is the start's, and `known_chdir` as of `collect`.
    Read = Callable[[bool, Callable[[str], bool] | None], Loaded]

# Set by a master for the next one; spelled out here, since most starts need not import `wsgiserv.master.upgrade`.
_UPGRADE_VARIABLE = "WSGISERV_UPGRADE"

# At a reload the master waits meanwhile: an import that hangs must not stop it for good.
_LONGEST_IMPORT_S = 30.0
# The master does nothing else meanwhile; it is enough for a hundred files.
_LONGEST_SEARCH_S = 0.005
# pidfd_open(2) would save the looking, and is not everywhere.
_POLL_S = 0.01


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        argv: the arguments without the program's name; None takes them from ``sys.argv``.

    Returns 0 when it stopped as told, 2 for bad usage or configuration, 3 when the workers cannot boot, 4
    when the application cannot be loaded.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda old_master: _run(arguments, old_master))


def run_program(read: Read, environment: ProcessEnvironment) -> int:
    """Run a server for a program that makes its configuration itself, in this process; return the exit status.

    Args:
        read: returns the configuration; called once at the start, and for each reload.
        environment: the environment of this process; ``read`` puts the variables of environment files there.

    In the forked workers it raises SystemExit: they exit as any Python program does.
    """
    return run_command(lambda old_master: _run_program(read, environment, old_master))


def run_command(run: Callable[[OldMaster | None], int]) -> int:
    """Call ``run`` with the old master in an upgrade, else None; return its exit status, or that of its error."""
    try:
        return run_reporting(run)
    except WsgiservError as error:
        _print_error(error)
        return error.exit_status
    except KeyboardInterrupt as interrupt:
        return ExitStatus.OK if is_stop(interrupt) else ExitStatus.INTERRUPTED


def run_reporting(run: Callable[[OldMaster | None], int]) -> int:
    """Call ``run`` as `run_command` does; raise its error, once an old master knows of it."""
    arm()  # from here on a child that a configuration file forks is none of the server's processes
    old_master = _old_master()
    try:
        if old_master is not None:
            catch_signals()
        return run(old_master)
    except WsgiservError as error:
        if old_master is not None:
            _ignore_signals()
            old_master.failed(f"{error}\n{error.traceback}".rstrip())
        raise
    except KeyboardInterrupt:
        if old_master is not None:
            _ignore_signals()
            from wsgiserv.master.upgrade import TOLD_TO_STOP

            old_master.failed(TOLD_TO_STOP)
        raise


def _old_master() -> OldMaster | None:
    """Return the old master in an upgrade (SIGUSR2), else None."""
    if _UPGRADE_VARIABLE not in os.environ:
        return None
    from wsgiserv.master.upgrade import OldMaster

    return OldMaster.from_environ(os.environ)


def catch_signals() -> None:
    """Let signals end the start in order, from here on until the master catches them."""
    with LibraryFirst():
        from wsgiserv.master.signals import catch_early

    catch_early()
    _unblock_signals()


def _ignore_signals() -> None:
    """Ignore signals, after a failure: the old master answers the report with one, maybe before this process exits."""
    from wsgiserv.master.signals import ignore_all

    ignore_all()


def _unblock_signals() -> None:
    """Unblock all signals, and give SIGCHLD its default."""
    # Both survive execve(2). Some supervisors, and parents in Java and PHP, block signals. PHP ignores SIGCHLD, and
    # then no exit of a child can be waited for.
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def is_stop(interrupt: KeyboardInterrupt) -> bool:
    """Tell whether a starting server was told to stop; else a person has interrupted a command."""
    module = sys.modules.get("wsgiserv.master.signals")
    return module is not None and isinstance(interrupt, module.StoppedWhileStarting)


def _run(argv: list[str], old_master: OldMaster | None) -> int:
    if _is_migrate(argv):
        with LibraryFirst():
            from wsgiserv.migrate.command import run
        return run(argv[1:])
    # Before all else: help must come also where the configuration is broken.
    line = parse(argv)
    if line.wants == "help":
        from wsgiserv.config.present import help_text

        print(help_text(), end="")
        return ExitStatus.OK
    if line.wants == "help_all":
        from wsgiserv.config.present import help_text

        print(help_text(all_settings=True), end="")
        return ExitStatus.OK
    if line.wants == "version":
        python = ".".join(map(str, sys.version_info[:3]))
        print(f"wsgiserv {__version__} (Python {python}, {os.uname().sysname})")
        return ExitStatus.OK

    asked = {given.name for given in line.given if given.raw}
    if asked & {"print_config", "check_config"}:
        _unblock_signals()
        # These commands run users' code: an interrupt raises KeyboardInterrupt there again (see wsgiserv.__main__).
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    elif old_master is None:
        catch_signals()
    if "print_config" not in asked:
        # The server's modules bind the functions of os, select and so on when it is imported; a configuration
        # file may replace these by gevent's. And its directory is in front of sys.path after that.
        import_server()
    from wsgiserv.config.loader import collect, start_directory
    from wsgiserv.config.process_environment import ProcessEnvironment

    # A snapshot, and the directory of the first start, so that a reload finds the same:
    # raw_env and chdir change both for this process later.
    environ = dict(os.environ)
    directory = start_directory(environ)
    environment = ProcessEnvironment(os.environ)

    def read(is_first: bool, known_chdir: Callable[[str], bool] | None) -> Loaded:
        before_gevent = patch_for_gevent if is_first else None
        return collect(argv, environ, directory, before_gevent, known_chdir, environment.put_files)

    return serve(read, environment, old_master)


def _is_migrate(argv: Sequence[str]) -> bool:
    """Tell the command ``migrate FILE`` from the application ``migrate``, which is alone or has flags of the server."""
    if argv[:1] != ["migrate"]:
        return False
    flag = argv[1].partition("=")[0] if len(argv) > 1 else ""
    return not flag.startswith("-") or flag in ("-o", "--output", "-h", "--help", "--")


def _run_program(read: Read, environment: ProcessEnvironment, old_master: OldMaster | None) -> int:
    if old_master is None:
        catch_signals()
    import_server()
    return serve(read, environment, old_master)


def serve(
    read: Read,
    environment: ProcessEnvironment,
    old_master: OldMaster | None,
    preload_application: Preload | None = None,
    program: Program | None = None,
) -> int:
    """Serve, or answer on the terminal, as the configuration says; return the exit status.

    Args:
        read: returns the configuration.
        environment: the environment of this process; ``read`` puts the variables of environment files there.
        old_master: the master whose sockets this one takes over, or None.
        preload_application: loads the application for `preload_app`, if that is not the one that the settings name.
        program: the program that this server is part of; None for the command.
    """
    from wsgiserv.config.loader import start_directory

    environ = dict(os.environ)
    directory = start_directory(environ)
    # The old master's directory may have been removed.
    loaded = read(True, (lambda chdir: True) if old_master is not None else None)
    if loaded.settings.print_config:
        loaded.raise_faults()
        from wsgiserv.config.present import config_text

        print(config_text(loaded.settings, loaded.sources, loaded.variables))
        _print_lines("note", loaded.notices)
        return ExitStatus.OK
    # What can be found wrong now is not found by a forked worker, over and over.
    _check_rest(loaded)
    if loaded.settings.check_config:
        from wsgiserv.master.advice import advice_about

        _print_lines("note", [*loaded.notices, *advice_about(loaded)])
        return _check(loaded)

    def reload_settings() -> Loaded:
        again = read(False, loaded.settings.chdir.__eq__)
        # By its descriptor: the directory may have no name any more. O_PATH needs no right to read it.
        before = os.open(".", O_PATH)
        try:
            _check_rest(again, loaded.settings.worker_class)
        except ConfigError:
            os.chdir(before)  # the old configuration goes on, and its relative paths
            raise
        finally:
            close(before)
        again.notices.extend(_certificate_warnings(again.settings))
        return again

    from wsgiserv.master.upgrade import Invocation

    is_restartable = program is None or program.upgrades
    invocation = Invocation.of_this_process(environ, directory) if is_restartable else None
    return _run_master(loaded, reload_settings, invocation, old_master, environment, preload_application, program)


def _run_master(
    loaded: Loaded,
    reload_settings: Callable[[], Loaded],
    invocation: Invocation | None,
    old_master: OldMaster | None,
    environment: ProcessEnvironment,
    preload: Preload | None,
    program: Program | None,
) -> int:
    from wsgiserv.logs.error import open_error_log
    from wsgiserv.master.advice import is_unnamed, name_advice
    from wsgiserv.master.master import Master
    from wsgiserv.privileges import root_warning
    from wsgiserv.worker.main import worker_main
    from wsgiserv.worker.preload import preload_application

    if loaded.settings.spew:
        from wsgiserv.line_trace import trace_lines

        trace_lines()
    # Once for a server, not at each upgrade of it.
    is_asked = old_master is None and is_unnamed(loaded)
    # Here, and not among the notices of a configuration: a reload repeats those.
    warning = root_warning(loaded.sources["user"])
    master = Master(
        loaded.settings,
        notices=[*loaded.notices, *_certificate_warnings(loaded.settings), *([warning] if warning else [])],
        reload_settings=reload_settings,
        worker_main=worker_main,
        log=open_error_log(loaded.settings),
        invocation=invocation,
        old_master=old_master,
        preload_application=preload or preload_application,
        advise=partial(name_advice, loaded.settings, _LONGEST_SEARCH_S) if is_asked else None,
        environment=environment,
        program=program,
    )
    return master.run()


# ---- checks above the configuration --------------------------------------------------------------------------


def _check_rest(loaded: Loaded, class_before: str | type[Any] | None = None) -> None:
    """Check settings with the layers above the configuration, in `chdir`: it becomes the working directory.

    Args:
        loaded: the configuration.
        class_before: at a reload, the `worker_class` of the server's start.

    Raises:
        ConfigError: all faults, those of ``loaded`` too.
    """
    from wsgiserv.app.loader import enter_directory, missing_in
    from wsgiserv.places import check_control_socket, check_spool_dir, check_worker_tmp_dir

    settings = loaded.settings

    def check(step: Callable[[], object], *names: str) -> None:
        # A setting with a fault has another value by now: what follows from that is no fault.
        if loaded.faulty.isdisjoint(names):
            try:
                step()
            except ConfigError as error:
                loaded.faults.append(error)

    # Before the checks, which import the user's code: its directory is in front of sys.path then.
    import_for(settings)
    check(lambda: _check_application(settings), "wsgi_app", "paste")
    check(lambda: _check_format(loaded), "access_log_format")
    check(lambda: _check_worker_class(loaded), "worker_class", "chdir", "pythonpath", "raw_env")
    check(lambda: _check_patched(loaded, class_before), "worker_class")
    check(lambda: _check_websocket(loaded), "wsgi_websocket")
    for entry in missing_in(settings.chdir, settings.pythonpath):
        loaded.notices.append(
            f"WS1053 pythonpath = {entry!r} ({loaded.sources['pythonpath']}) does not exist: nothing is imported from "
            "there"
        )
    # Under --check-config a child does this, and more, if it is started.
    if (loaded.faults or not settings.check_config) and "chdir" not in loaded.faulty:
        # At a reload, too: the name may be a link, to another release by now. Relative paths start there.
        check(lambda: enter_directory(settings.chdir))
        check(lambda: check_spool_dir(settings), "spool_dir", "user")
        check(lambda: check_worker_tmp_dir(settings), "worker_tmp_dir")
        check(lambda: check_control_socket(settings), "control_socket")
        check(lambda: _check_certificates(settings), "certfile", "keyfile", "sni_certificates")
    loaded.raise_faults()


def _check_application(settings: Settings) -> None:
    if settings.wsgi_app is None:
        raise ConfigError(
            "WS1050 no application is named. Accepted: module:name, for example: wsgiserv hello:app\n"
            "(or wsgi_app = 'hello:app' in a configuration file). Type 'wsgiserv --help' for the flags."
        )


def patch_for_gevent() -> None:
    """Patch this process before the code of a user runs in it. Once: a reload leaves it as it is."""
    with LibraryFirst():
        import wsgiserv.worker.gevent_worker  # noqa: F401 - imports what gevent needs before the code of a user runs
        from wsgiserv.worker.gevent_patching import patch_master

        patch_master()


def _check_patched(loaded: Loaded, class_before: str | type[Any] | None) -> None:
    """Check the worker class against the patches of gevent here: workers inherit them. Raises ConfigError."""
    from wsgiserv.config.worker_class import CLASS_PATHS, patches_library
    from wsgiserv.worker.registry import resolve_worker_class

    wanted, source = loaded.settings.worker_class, loaded.sources["worker_class"]
    if not patched_by() or wanted not in CLASS_PATHS:
        return
    # Threads that are greenlets by then would not run while the worker waits for its sockets.
    if patches_library(class_before) and not patches_library(wanted):
        raise ConfigError(
            f"WS1051 worker_class = {wanted!r} ({source}): this server was started with gevent and patched for it: "
            "workers of this class would have greenlets for threads, and gevent's sockets. Start it anew for this "
            "class: SIGUSR2, or stop and start."
        )
    resolve_worker_class(wanted).check_patched("the configuration file")


def _check_websocket(loaded: Loaded) -> None:
    """Raise ConfigError unless what `wsgi_websocket` needs is installed."""
    if not loaded.settings.wsgi_websocket:
        return
    try:
        with LibraryFirst():
            import wsgiserv.net.websocket_gateway  # noqa: F401 - imports wsproto, once for all workers
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in ("wsproto", "h11"):
            raise
        source = loaded.sources["wsgi_websocket"]
        raise ConfigError(
            f"WS1089 wsgi_websocket = True ({source}): it needs the package {error.name}, which is not installed. "
            "Install it: pip install 'wsgiserv[websocket]'"
        ) from None


def _check_certificates(settings: Settings) -> None:
    if settings.certfile:
        from wsgiserv.net.tls_context import check_certificates

        check_certificates(settings)


def _certificate_warnings(settings: Settings) -> list[str]:
    """Return a line for each certificate with its end in the past or near."""
    if not settings.certfile:
        return []
    from wsgiserv.net.certificate_dates import date_warnings

    return date_warnings(settings)


def _check_format(loaded: Loaded) -> None:
    from wsgiserv.logs.format import check_format, format_advice

    template = loaded.settings.access_log_format
    if loaded.settings.logger_class is not None:
        return  # a class of the user's may have atoms of its own
    check_format(template)
    advice = format_advice(template)
    if advice:
        loaded.notices.append(advice)


def _check_worker_class(loaded: Loaded) -> None:
    """Raise ConfigError unless the workers will find their class."""
    from wsgiserv.config.worker_class import CLASS_PATHS
    from wsgiserv.worker.registry import resolve_worker_class

    settings, source = loaded.settings, loaded.sources["worker_class"]
    wanted = settings.worker_class
    if wanted in CLASS_PATHS or not isinstance(wanted, str):
        # Imported once (gevent), and not by each worker: workers boot in a third of the time, and share the memory.
        # Nothing is patched by that, and no hub is made.
        resolve_worker_class(wanted, source=source)
        return
    # In a child process: the module stays out of the master, so that each worker imports it anew, and changed code
    # comes with a reload.
    status, fault = _run_in_child(lambda report: _resolve_in_child(settings, source, report), _LONGEST_IMPORT_S)
    if fault:
        raise ConfigError(fault)
    if status != ExitStatus.OK:
        raise ConfigError(
            f"WS1054 worker_class = {wanted!r} ({source}): the process that imported it to try it "
            f"{_how_it_ended(status, _LONGEST_IMPORT_S)}. "
            f"Import it alone to see why: python -X faulthandler -c 'import {wanted.rpartition('.')[0]}'"
        )


def _resolve_in_child(settings: Settings, source: str, report: TextIO) -> int:
    from wsgiserv.app.appearance import identify
    from wsgiserv.app.loader import prepare_path
    from wsgiserv.worker.registry import resolve_worker_class

    try:
        os.environ.update(dict(pair.split("=", 1) for pair in identify(settings)))
        prepare_path(settings.chdir, settings.pythonpath)
        resolve_worker_class(settings.worker_class, source=source)
    except ConfigError as error:
        report.write(str(error))
        return ExitStatus.CONFIG
    return ExitStatus.OK


# ---- code of the user in a child process -----------------------------------------------------------------------


def _run_in_child(work: Callable[[TextIO], int], longest_s: float) -> tuple[int | None, str]:
    """Run ``work`` in a child process; return its exit status and its report.

    Args:
        work: gets a file to write its report to, and returns the exit status. Its threads and connections
            end with the child.
        longest_s: the child is killed after this time in seconds; 0 is no limit.

    Returns:
        The status is negative for a signal, None when the child was killed for the time it took.

    Raises:
        BootError: the system made no process.
    """

    def run() -> int:
        # At a reload the handlers are the master's, and so is the socket that its signals are queued in.
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler) and handler is not signal.default_int_handler:
                signal.signal(number, signal.SIG_DFL)
        if longest_s:
            signal.alarm(int(longest_s) + 1)  # in case the parent, which would kill this process, is killed
        status = work(report)
        report.flush()
        return status

    flush_standard_streams(wait=True)
    # A file, not a pipe: a process that the user's code has started could hold the other end open for good.
    with open(unnamed_file("wsgiserv-report"), "w+", encoding="utf-8", errors="backslashreplace") as report:
        # Not a thread with a timeout: an import that hangs can only be killed with its process.
        try:
            pid = run_in_child(run)
        except OSError as error:
            raise BootError(
                f"WS1055 cannot fork: {error.strerror}. Accepted: room for more processes: see ulimit -u."
            ) from None
        end = monotonic() + longest_s
        while (ended := reap(pid)) is None and not (longest_s and monotonic() > end):
            sleep(_POLL_S)
        if ended is None:
            kill(pid, signal.SIGKILL)
            waitpid(pid, 0)
        report.seek(0)
        text = report.read()
    return (None if ended is None else os.waitstatus_to_exitcode(ended.wait_status or 0)), text


def _how_it_ended(status: int | None, longest_s: float) -> str:
    if status is None:
        return f"did not come back within {longest_s:g} s"
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status} (os._exit?)"


def _check(loaded: Loaded) -> int:
    """Check in a child process; return the exit status of a start, by the first fault."""
    from wsgiserv.config.masking import mask_text
    from wsgiserv.master.spawn import boot_timeout_of

    application = mask_text(loaded.settings.wsgi_app or "")
    advice = f"Load it alone to see why: python -X faulthandler -c 'import {application.partition(':')[0]}'"
    if loaded.settings.paste is not None:
        advice = "Look at the modules that this file names"
    longest_s = boot_timeout_of(loaded.settings)
    status, report = _run_in_child(lambda report: _check_in_child(loaded, report), longest_s)
    if status is None:
        raise BootError(
            f"WS1056 the application {application!r} was not loaded within {longest_s:g} s (boot_timeout). {advice}"
        )
    if not report:
        how = _how_it_ended(status, longest_s)
        raise ApplicationError(f"WS1057 the process that loaded the application {application!r} {how}. {advice}")
    if status == ExitStatus.OK:
        print(f"wsgiserv: the configuration is good and the application {application!r} loads")
        print(report, end="")
    return status


def _check_in_child(loaded: Loaded, report: TextIO) -> int:
    """Check everything, print the faults, and report the good parts; return the exit status."""
    from wsgiserv.config_check import examine

    found = examine(loaded.settings, loaded.config_path)
    _print_lines("warning", found.warnings)
    _print_lines("note", found.notes)
    for error in found.errors:
        _print_error(error)
    report.writelines(f"  {subject}: {words}\n" for subject, words in found.facts.items() if words)
    return found.errors[0].exit_status if found.errors else ExitStatus.OK


def _print_error(error: WsgiservError) -> None:
    if error.traceback:
        print(error.traceback.rstrip(), file=sys.stderr)
    _print_lines("error", error.faults)


def _print_lines(kind: str, lines: Iterable[str]) -> None:
    # Not to the standard output: that is the answer, which may be piped into a file.
    for line in lines:
        print(f"wsgiserv: {kind}: {line}", file=sys.stderr)
