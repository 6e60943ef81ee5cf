"""Imports all modules of the server, before code of its users can run.

An application's directory is put in front of ``sys.path``, and a file there named like a module of the standard
library (``random.py``) would be imported in its place, later, by a worker in the middle of a request. And while the
package of the server is upgraded its files are missing for a moment, or are another version's: a worker
forked then must not look for them. So the imports within functions are made here, too, as
`tests/integration/test_preimport.py` checks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Final

from wsgiserv.config.settings import speaks_tls
from wsgiserv.library_first import LibraryFirst

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

# With the modules that these import themselves at once. `resource` is for os.wait4(), in C; `unicodedata` for
# `traceback`, when a line is not ASCII.
ALWAYS: Final = (
    *("wsgiserv.app.diagnostics", "wsgiserv.config.loader", "wsgiserv.config.cgroup", "wsgiserv.logs.error"),
    *("wsgiserv.logs.format", "wsgiserv.master.load", "wsgiserv.master.master", "wsgiserv.master.upgrade"),
    *("wsgiserv.net.portable_poller", "wsgiserv.places", "wsgiserv.worker.main", "wsgiserv.worker.preload"),
    *("wsgiserv.worker.request_timeout", "wsgiserv.worker.registry"),
    *(
        "wsgiserv.worker.reloader",
        "wsgiserv.worker.sync",
        "wsgiserv.worker.threads",
        "wsgiserv.worker.warmup",
    ),
    *("ast", "ctypes", "difflib", "functools", "grp", "importlib.util", "inspect", "ipaddress", "linecache"),
    *("pwd", "random", "resource", "shlex", "sysconfig", "tempfile", "traceback", "unicodedata"),
)
# Large, or rarely used: imported with a setting of this name or value only.
OPTIONAL: Final = {
    "tls": (
        *("wsgiserv.net.certificate_dates", "wsgiserv.net.tls", "wsgiserv.net.tls_context", "_ssl", "ssl"),
    ),
    "proxy_protocol": ("wsgiserv.net.proxy_socket",),
    "uwsgi": ("wsgiserv.http.uwsgi", "wsgiserv.net.uwsgi_client"),
    "gevent": ("wsgiserv.worker.gevent_patching", "wsgiserv.worker.gevent_worker"),
    "reload": ("wsgiserv.worker.debug_page",),
    "watchfiles": ("watchfiles",),
    "logconfig": ("logging.config", "logging.handlers", "configparser"),
}


def import_server() -> None:
    """Import the modules of every server. Called by the command line, before a configuration file is run."""
    _import(ALWAYS)


def import_for(settings: Settings) -> None:
    """Import the modules for these settings. Called in the master, at the start and at each reload."""
    wanted = {
        "tls": speaks_tls(settings),
        "proxy_protocol": settings.proxy_protocol != "off",
        "uwsgi": settings.protocol == "uwsgi",
        "gevent": settings.worker_class == "gevent",
        "reload": settings.reload,
        # A process that gevent has patched polls: see `wsgiserv.worker.reloader`.
        "watchfiles": settings.reload
        and settings.reload_engine != "poll"
        and settings.worker_class != "gevent",
        "logconfig": settings.logconfig or settings.logconfig_dict or settings.logconfig_json,
    }
    for name, is_wanted in wanted.items():
        if is_wanted:
            _import(OPTIONAL[name])


def _import(names: Iterable[str]) -> None:
    missing = [name for name in names if name not in sys.modules]
    if not missing:
        return
    with LibraryFirst():
        for name in missing:
            try:
                import_module(name)
            except ModuleNotFoundError:
                # A platform without it, or a package that is not installed: its user reports that.
                if name.startswith("wsgiserv."):
                    raise
