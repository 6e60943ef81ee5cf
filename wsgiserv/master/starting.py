"""The start of the master, from its settings to the first generation."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wsgiserv import __version__
from wsgiserv.config.settings import Settings
from wsgiserv.hooks import call_hook, call_hook_or_stop
from wsgiserv.logs.access import open_access_file
from wsgiserv.logs.error import share_log_files
from wsgiserv.logs.files import log_files
from wsgiserv.master.generation import Generation
from wsgiserv.master.hooks_server import HookServer
from wsgiserv.master.resources import ServerResources
from wsgiserv.master.signals import StartInterrupt
from wsgiserv.master.spawn import set_title
from wsgiserv.net.listener import exposure_warning
from wsgiserv.privileges import check_privileges
from wsgiserv.wording import counted


def start_server(notices: Sequence[str], resources: ServerResources, interrupt: StartInterrupt) -> Generation:
    """Acquire the resources, call the hooks of the start, and return the first generation.

    Args:
        notices: warnings about the configuration, for the log.
        resources: receives the pid file, the sockets and the handoff channel.
        interrupt: ends the start at a signal.

    Raises ConfigError, BootError, ApplicationError; the caller then calls ``resources.clean_up()``.
    """
    log, settings = resources.log, resources.settings
    check_privileges(settings)
    server = resources.server = HookServer(settings, log)
    set_title("master", server.proc_name)
    # A signal must not end the start between the creation of a file and the note of it: nothing would remove the file.
    with interrupt.held():
        # Before the sockets: of two servers with one configuration, this tells the second of the first.
        resources.create_pid_file()
    resources.environment.apply(settings.raw_env)
    for notice in notices:
        log.warning("%s", notice)
    call_hook_or_stop(log, "on_starting", settings.on_starting, server)
    with interrupt.held():
        resources.open_listeners()
    server.listen(resources.listeners)
    # After the inherited sockets: a descriptor number of a missing one must not become the log's.
    log_files.begin()
    open_access_file(settings)  # the workers' user may not be allowed to: workers get the descriptor
    share_log_files()
    server.handoff = resources.open_handoff()
    _log_start(settings, resources)
    # The application's import, where the master preloads it, comes after the server's own faults: it may take long.
    generation = resources.generation(1, settings, resources.listeners, resources.began_at)
    server.set_num_workers(settings.workers)
    call_hook(log, "when_ready", settings.when_ready, server)
    return generation


def _log_start(settings: Settings, resources: ServerResources) -> None:
    kind = settings.worker_class
    name = kind if isinstance(kind, str) else kind.__name__
    resources.log.info(
        "wsgiserv %s (Python %s), pid %d: %s for %s",
        __version__,
        ".".join(map(str, sys.version_info[:3])),
        resources.server.pid,
        counted(settings.workers, f"{name} worker"),
        settings.wsgi_app,
    )
    origin = " (sockets of the service manager; bind is not used)" if resources.activated else ""
    protocol = " for the uwsgi protocol" if settings.protocol == "uwsgi" else ""
    resources.log.info("listening on %s%s%s", ", ".join(map(str, resources.listeners)), protocol, origin)
    for listener in resources.listeners:
        if warning := exposure_warning(listener, settings):
            resources.log.warning("%s", warning)
