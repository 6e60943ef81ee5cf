"""wsgiserv: a pure-Python pre-fork WSGI application server.

`run` serves an application in this process, `Server` in a child process in the background. Both, and the errors that
they raise, are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["ApplicationError", "BootError", "ConfigError", "Server", "WsgiservError", "__version__", "run"]

if TYPE_CHECKING:
    from wsgiserv.embedding.run import run
    from wsgiserv.embedding.server import Server
    from wsgiserv.errors import ApplicationError, BootError, ConfigError, WsgiservError
else:
    _PLACES = {
        **dict.fromkeys(("ApplicationError", "BootError", "ConfigError", "WsgiservError"), "wsgiserv.errors"),
        "Server": "wsgiserv.embedding.server",
        "run": "wsgiserv.embedding.run",
    }

    def __getattr__(name):
        """Import a public name when it is first used (PEP 562): the command pays for none of them."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_PLACES[name]), name)
        return value

    def __dir__():
        """Return the names, those that have not been used yet included."""
        return sorted({*globals(), *__all__})
