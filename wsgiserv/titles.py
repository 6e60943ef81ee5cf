"""Sets the titles of processes and threads for ps and top, where the package setproctitle is installed."""

from __future__ import annotations

try:
    from setproctitle import getproctitle, setproctitle, setthreadtitle
except ImportError:
    has_titles = False

    def getproctitle() -> str:
        """Return an empty text: it is not known."""
        return ""

    def setproctitle(title: str) -> None:
        """Do nothing."""

    def setthreadtitle(title: str) -> None:
        """Do nothing."""

else:
    has_titles = True

__all__ = ["getproctitle", "has_titles", "setproctitle", "setthreadtitle"]
