"""`Response`, which configuration files replace to drop the Server header."""

from __future__ import annotations

from wsgiserv.gunicorn import SERVER


class Response:
    """Stands for gunicorn's class, and is never used: set ``server_header = ""`` in place of a subclass."""

    version = SERVER

    def default_headers(self) -> list[str]:
        """Return the lines that gunicorn adds, as far as they do not depend on a response."""
        return [f"Server: {self.version}\r\n"]
