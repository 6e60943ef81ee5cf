"""Imports all modules of the server, before code of its users can run.

An application's directory is put in front of ``sys.path``, and a file there named like a module of the standard
library (``random.py``) would be imported in its place, later, by a worker in the middle of a request. And while the
package of the server is upgraded its files are missing for a moment, or are another version's: a worker
forked then must not look for them. So the imports within functions are made here, too, as
`tests/integration/test_preimport.py` checks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from typing import Final

from wsgiserv.config.settings import Settings, speaks_tls
from wsgiserv.config.worker_class import known, patches_library
from wsgiserv.library_first import LibraryFirst, for_applications

# With the modules that these import themselves at once. Of the standard library also those that another version
# imports late: `resource` is for os.wait4(), in C; `unicodedata` for `traceback`, when a line is not ASCII.
ALWAYS: Final = (
    *("wsgiserv.config.loader", "wsgiserv.master.master", "wsgiserv.net.portable_poller", "wsgiserv.places"),
    *("wsgiserv.worker.main", "wsgiserv.worker.preload", "wsgiserv.worker.reloader"),
    *("wsgiserv.worker.request_timeout", "wsgiserv.worker.sync", "wsgiserv.worker.threads"),
    *("wsgiserv.master.advice", "wsgiserv.worker.warmup"),
    *("ast", "ctypes", "difflib", "functools", "grp", "importlib.util", "inspect", "ipaddress", "linecache"),
    *("pwd", "random", "resource", "shlex", "sysconfig", "tempfile", "traceback", "unicodedata"),
)

# What frameworks and ordinary applications import: once, in the master, its pages shared by all workers, in place of
# once in each. None of it binds what gevent replaces, nor `ssl`, which must not be there before an application that
# patches the library by itself has done so.
OF_APPLICATIONS: Final = (
    *("base64", "calendar", "datetime", "decimal", "email.message", "email.parser", "email.utils", "hashlib", "hmac"),
    *("html", "importlib.metadata", "locale", "mimetypes", "pickle", "pkgutil", "platform", "secrets"),
    *("uuid", "zipfile"),
)
# Of these, what gevent looks up when it patches the library: it is not left to a file of an application.
LOOKED_UP: Final = frozenset({"selectors", "socket"})


def _may_use_watchfiles(settings: Settings) -> bool:
    # A process that its worker class has patched polls: see `wsgiserv.worker.reloader`.
    return settings.reload and settings.reload_engine != "poll" and not patches_library(settings.worker_class)


def _has_logconfig(settings: Settings) -> bool:
    return bool(settings.logconfig or settings.logconfig_dict or settings.logconfig_json)


def _has_wsproto(settings: Settings) -> bool:
    if settings.wsgi_websocket:
        with suppress(ImportError):  # not installed: the check of the setting reports it
            import_module("wsproto.connection")
            return True
    return False


# Large, or rarely used: imported for settings that want them only.
OPTIONAL: Final[dict[tuple[str, ...], Callable[[Settings], bool]]] = {
    ("wsgiserv.net.certificate_dates", "wsgiserv.net.tls", "wsgiserv.net.tls_context"): speaks_tls,
    ("_ssl", "ssl"): speaks_tls,
    ("wsgiserv.net.proxy_socket",): lambda settings: settings.proxy_protocol != "off",
    ("wsgiserv.http.uwsgi", "wsgiserv.net.uwsgi_client"): lambda settings: settings.protocol == "uwsgi",
    ("wsgiserv.worker.debug_page",): lambda settings: settings.reload,
    ("watchfiles",): _may_use_watchfiles,
    ("logging.config", "logging.handlers", "configparser"): _has_logconfig,
    ("wsgiserv.logs.syslog",): lambda settings: settings.syslog,
    ("wsgiserv.logs.logger_class",): lambda settings: settings.logger_class is not None,
    ("wsgiserv.line_trace",): lambda settings: settings.spew,
    ("wsgiserv.master.differences",): lambda settings: settings.check_config,
    ("configparser",): lambda settings: settings.paste is not None,
    ("wsgiserv.net.websocket_gateway",): _has_wsproto,
}


def import_server() -> None:
    """Import the modules of every server. Called by the command line, before a configuration file is run."""
    _import(ALWAYS)


def import_for(settings: Settings) -> None:
    """Import the modules for these settings, and for applications. Called in the master, at each start and reload."""
    before = set(sys.modules)
    _import(OF_APPLICATIONS)
    for_applications.update(sys.modules.keys() - before - LOOKED_UP)
    # The module of a class of ours, and gevent for its own alone; the check of the class reports a missing gevent.
    with LibraryFirst(), suppress(ImportError):
        known(settings.worker_class)
    _import(name for names, are_wanted in OPTIONAL.items() if are_wanted(settings) for name in names)


def _import(names: Iterable[str]) -> None:
    with LibraryFirst():
        for name in names:
            try:
                import_module(name)
            except ModuleNotFoundError:
                # A platform without it, or a package that is not installed: its user reports that.
                if name.startswith("wsgiserv."):
                    raise
