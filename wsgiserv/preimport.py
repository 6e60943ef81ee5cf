"""All imports that the server may ever need, made before the code of its users can run.

Owns: which modules are imported in the master before a configuration file is read, and which a setting adds.
Must not know: what any of them does.

An application's directory is put in front of ``sys.path``, and a file there that is named as a module of the standard
library (``random.py``) would be imported in its place, later, by a worker in the middle of a request. And while the
package of the server is upgraded its files are missing for a moment, or are another version's: a worker that is
forked then must not look for them. So what is imported inside of a function is imported here, too;
`tests/test_preimport.py` holds that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Final

from wsgiserv.config.tls import speaks_tls
from wsgiserv.library_first import LibraryFirst

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

__all__ = ["ALWAYS", "OPTIONAL", "import_for", "import_server"]

# Beside what these import themselves at once.
ALWAYS: Final = (
    "wsgiserv.app.diagnostics",
    "wsgiserv.config.loader",
    "wsgiserv.config.cgroup",
    "wsgiserv.logs.error",
    "wsgiserv.logs.format",
    "wsgiserv.master.load",
    "wsgiserv.master.master",
    "wsgiserv.master.upgrade",
    "wsgiserv.net.portable_poller",
    "wsgiserv.places",
    "wsgiserv.worker.base",
    "wsgiserv.worker.request_timeout",
    "wsgiserv.worker.preload",
    "wsgiserv.worker.registry",
    "wsgiserv.worker.busy_handover",
    "wsgiserv.worker.reloader",
    "wsgiserv.worker.sync",
    "wsgiserv.worker.threads",
    "wsgiserv.worker.warmup",
    "ast",
    "ctypes",
    "difflib",
    "functools",
    "grp",
    "importlib.util",
    "inspect",
    "ipaddress",
    "linecache",
    "pwd",
    "random",
    # By os.wait4(), in C.
    "resource",
    "shlex",
    "sysconfig",
    "tempfile",
    "traceback",
    # By `traceback`, for a line that is not ASCII.
    "unicodedata",
)
# Large, or rarely used: with a setting of this name, or of this value.
OPTIONAL: Final = {
    "tls": (
        *(
            "wsgiserv.net.certificate_dates",
            "wsgiserv.net.tls",
            "wsgiserv.net.tls_context",
        ),
        *("_ssl", "ssl"),
    ),
    "proxy_protocol": ("wsgiserv.net.proxy_socket",),
    "uwsgi": ("wsgiserv.http.uwsgi", "wsgiserv.net.uwsgi_client"),
    "gevent": ("wsgiserv.worker.gevent_worker",),
    "reload": ("wsgiserv.worker.debug_page",),
    "watchfiles": ("watchfiles",),
    "logconfig": ("logging.config", "logging.handlers", "configparser"),
}


def import_server() -> None:
    """Import what every server may need. Called by the command line, before a configuration file is run."""
    _import(ALWAYS)


def import_for(settings: Settings) -> None:
    """Import what workers, and the master, may need with these settings. At the start, and at each reload."""
    wanted = {
        "tls": speaks_tls(settings),
        "proxy_protocol": settings.proxy_protocol != "off",
        "uwsgi": settings.protocol == "uwsgi",
        "gevent": settings.worker_class == "gevent",
        "reload": settings.reload,
        # A process that gevent has patched polls; see `wsgiserv.worker.reloader`.
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
                # A platform without it, or a package that is not installed: whoever needs it says so.
                if name.startswith("wsgiserv."):
                    raise
