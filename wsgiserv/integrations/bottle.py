"""Bottle's ``run`` with this server: ``run(server="wsgiserv.integrations.bottle:WsgiservServer")``.

Once this module is imported ``run(server="wsgiserv")`` works as well.
"""

from __future__ import annotations

from typing import Any

import bottle

import wsgiserv


class WsgiservServer(bottle.ServerAdapter):  # type: ignore[misc]
    """The adapter. Its options are the settings of `wsgiserv.run`: ``run(server=..., workers=4)``."""

    def run(self, handler: Any) -> None:
        """Serve until the server is told to stop."""
        settings = {"loglevel": "warning" if self.quiet else None, **self.options}
        if "bind" not in settings:
            settings["bind"] = self.host if self.host.startswith("unix:") else _address(self.host, self.port)
        wsgiserv.run(handler, **settings)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and host[0] != "[" else f"{host}:{port}"


# Bottle looks a text up here before it imports it.
bottle.server_names["wsgiserv"] = WsgiservServer
