"""Starts a worker in the master's child."""

from __future__ import annotations

import os
from os import getpid

from wsgiserv.app.loader import prepare_path
from wsgiserv.boot import WorkerBoot
from wsgiserv.errors import ApplicationError, BootError, ConfigError, ExitStatus
from wsgiserv.hooks import call_hook_or_fail
from wsgiserv.logs.error import close_logs_in_child
from wsgiserv.privileges import drop_privileges, set_home
from wsgiserv.process import add_child_cleanup, release_standard_streams, unblock_last
from wsgiserv.unpatched import reset_hubs
from wsgiserv.worker.base import Worker
from wsgiserv.worker.crash_dump import catch_crashes
from wsgiserv.worker.registry import resolve_worker_class


def worker_main(boot: WorkerBoot) -> int:
    """Run a worker, from just after the fork to its exit status.

    Args:
        boot: the values that the worker starts with.

    Returns:
        A status of `ExitStatus`: ``OK`` when it stopped as told, ``BOOT`` or ``APPLICATION`` when it could not boot.
    """
    add_child_cleanup(boot.close_in_child)
    add_child_cleanup(close_logs_in_child)
    # Before the worker makes anything: with preload_app the application may have started a hub in the zygote.
    reset_hubs()
    settings = boot.settings
    if settings.spew:
        from wsgiserv.line_trace import trace_lines

        trace_lines()
    worker: Worker | None = None
    failure: BaseException | None = None
    status: int = ExitStatus.BOOT
    try:
        # A preloaded application was loaded in the directory that this process has inherited: after a symbolic link
        # was moved to another release, that release's files are not this code's.
        if boot.application is None and not prepare_path(settings.chdir, settings.pythonpath):
            boot.log.info("%s does not exist any more; worker %d stays where it is", settings.chdir, getpid())
        worker = resolve_worker_class(settings.worker_class, settings.threads)._make(boot)
        _prepare(worker)
    except BaseException as error:
        failure = error
    # Outside of the handlers: hooks would find what has ended the worker in sys.exc_info().
    if worker is not None and isinstance(failure, (ApplicationError, BootError)):  # of the hook
        status = worker._fail(failure)
        failure = None
    elif isinstance(failure, (ConfigError, OSError)):
        reason = failure.exit_status if isinstance(failure, ConfigError) else ExitStatus.BOOT
        boot.ready.report("failed", str(failure), "", reason)
        failure = None
    elif worker is not None and failure is None:
        try:
            status = worker._boot_and_serve()
        except BaseException as error:
            failure = error
    if worker is not None:
        worker._await_exit()
        worker._call_exit_hook()
        worker._close_sockets()
        worker._let_go()
        release_standard_streams()
    if failure is not None:
        raise failure
    return status


def _prepare(worker: Worker) -> None:
    """Do what comes before the application: with the master's user first, then with the worker's."""
    boot, settings = worker.boot, worker.settings
    add_child_cleanup(worker.close_in_child)
    worker._signals.install()
    catch_crashes(boot.crash_dump_fd)
    unblock_last()
    worker.prepare()
    # After `prepare`: gevent replaces `signal.signal`, and the guard goes around its function.
    worker._signals.guard()
    # The private key, and what the hook opens, may be readable for the master's user alone.
    worker._admission.load_certificates()
    worker.take_attributes(boot.handle.attributes())
    call_hook_or_fail(boot.log, "post_fork", settings.post_fork, boot.server, worker)
    set_home(settings, os.environ)
    drop_privileges(settings)
