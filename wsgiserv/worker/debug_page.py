"""Serves the reason, on every page, while the application cannot be imported (``--reload``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from wsgiserv.errors import ApplicationError

# Without the tags that HTML takes for granted: head, body, and the ends.
_PAGE = """<!doctype html><html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The application cannot be loaded</title>
<style>
body {{ max-width: 60rem; margin: 0 auto; padding: 2rem 1rem; font: 16px/1.5 system-ui; color: #1a1a1a; }}
h1 {{ font-size: 1.4rem; color: #a40000; }}
p {{ overflow-wrap: anywhere; }}
pre {{ padding: 1rem; overflow-x: auto; background: #f4f4f4; font-size: 0.85rem; line-height: 1.4; }}
footer {{ color: #666; font-size: 0.85rem; }}
</style>
<h1>The application cannot be loaded</h1>
<p>{message}</p>
{traceback}<footer>Save a corrected file and reload this page:
wsgiserv --reload tries again on every change.</footer>
"""


def broken_application(error: ApplicationError) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that answers every request with 500 and the reason.

    It shows source lines, so it is for --reload only.

    Args:
        error: the reason.
    """
    message, traceback = str(error), error.traceback
    shown = f"<pre>{escape(traceback)}</pre>\n" if traceback else ""
    # Source lines and paths may hold surrogates, which UTF-8 cannot.
    html = _PAGE.format(message=escape(message), traceback=shown).encode("utf-8", "backslashreplace")
    text = f"The application cannot be loaded.\n\n{message}\n" + (f"\n{traceback}" if traceback else "")
    plain = text.encode("utf-8", "backslashreplace")

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        accept = environ.get("HTTP_ACCEPT", "")
        # Browsers name it, curl does not.
        is_html = "text/html" in accept or "application/xhtml+xml" in accept
        body = html if is_html else plain
        start_response(
            "500 Internal Server Error",
            [
                ("Content-Type", f"text/{'html' if is_html else 'plain'}; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                # Source lines may hold what an attacker has sent: nothing in the page runs or is fetched.
                ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
                ("X-Content-Type-Options", "nosniff"),
                ("Vary", "Accept"),
            ],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return application
