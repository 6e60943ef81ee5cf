"""Serves an application for ``pserve`` and other commands that read PasteDeploy files: ``use = egg:wsgiserv#main``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wsgiserv.cli import catch_signals, patch_for_gevent, run_command, serve
from wsgiserv.preimport import import_server
from wsgiserv.process import exit_as_interpreter

if TYPE_CHECKING:
    import logging

    from wsgiserv.config.loader import Loaded
    from wsgiserv.config.settings import Settings

App = Callable[..., Any]


def serve_paste(app: App, global_conf: Mapping[str, str], **section: str) -> None:
    """Serve ``app`` until the server is told to stop; then return, or end the process with the status of a failure.

    The entry point of the group ``paste.server_runner``.

    Args:
        app: the application.
        global_conf: has the file's path as ``__file__``.
        section: the settings in the file's section of the server.
    """
    pid = os.getpid()
    path = os.path.abspath(global_conf.get("__file__") or "a PasteDeploy file")
    try:
        status = run_command(lambda old_master: _serve(app, path, section, old_master))
    except SystemExit as end:
        if os.getpid() == pid:  # the process that has started a daemon
            raise
        exit_as_interpreter(end.code if isinstance(end.code, int) else 1)
    if status:
        # By an exception, pserve would say "Exiting" and make the status 0.
        exit_as_interpreter(status)


def _serve(app: App, path: str, section: Mapping[str, str], old_master: Any) -> int:
    if old_master is None:
        catch_signals()
    import_server()
    from wsgiserv.config.loader import collect, start_directory
    from wsgiserv.config.paste import of_server_section
    from wsgiserv.config.process_environment import ProcessEnvironment

    given = list(of_server_section(section, f"the server's section of {path}"))
    environ = dict(os.environ)
    directory = start_directory(environ)
    environment = ProcessEnvironment(os.environ)

    def read(is_first: bool, known_chdir: Callable[[str], bool] | None) -> Loaded:
        before_gevent = patch_for_gevent if is_first else None
        put_files = environment.put_files
        loaded = collect((), environ, directory, before_gevent, known_chdir, put_files, given=given, logging_file=path)
        settings = loaded.settings
        # It is here already, so that each worker gets it by its fork, whatever the settings say.
        settings = replace(settings, wsgi_app=path, preload_app=True, preload_in="master", reload=False)
        return loaded._replace(settings=settings)

    def preload(settings: Settings, log: logging.Logger, in_master: bool) -> App:
        from wsgiserv.worker.registry import resolve_worker_class

        resolve_worker_class(settings.worker_class, settings.threads).patch(log, in_master)
        return app

    return serve(read, environment, old_master, preload)
