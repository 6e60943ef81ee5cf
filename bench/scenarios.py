"""The scenarios of bench compare: applications, loads, right answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from bench import apps

FILE_BYTES = 50_000_000

_ITEMS = [{"id": number, "name": f"an article of some kind, number {number}"} for number in range(62)]
_POSTED = json.dumps({"total": 4711, "items": _ITEMS}).ljust(4096)

BROWSER_FIELDS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "http://127.0.0.1/shop/list?page=2",
    "Cookie": "session=0123456789abcdef0123456789abcdef; theme=dark",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
}
BROWSER = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in BROWSER_FIELDS.items())
_CLOSE = 'wrk.headers["Connection"] = "close"\n'
_POST = f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [[{_POSTED}]]\n'

# What differs is new in every request: path, query, a header of its own, cookie. One string.format, since wrk must not
# be the limit.
_UNIQUE_FIELDS = {
    **BROWSER_FIELDS,
    "Cookie": "session=0123456789abcdef0123456789%d; theme=dark",
    "X-Trace": "5f2b9c1e-77aa-4d1e-%d",
}
_UNIQUE_HEAD = "\r\n".join(
    ["GET /items/%d/page?visit=%d HTTP/1.1", "Host: 127.0.0.1"]
    + [f"{name}: {value}" for name, value in _UNIQUE_FIELDS.items()]
    + ["", ""]
)
_UNIQUE = f"""
local number = 100000000
local template = {json.dumps(_UNIQUE_HEAD)}
local format = string.format
request = function()
  number = number + 1
  return format(template, number, number, number, number)
end
"""


class Scenario(NamedTuple):
    """One comparison.

    Attributes:
        title: of its table.
        app: the application.
        answer: the body of the right answer; empty for the file.
        script: for wrk, in Lua.
        connections: how many are open at once.
        threads: of servers with threads; 0 leaves each its usual number.
        body: is posted.
        download: the client is bench/download.py in place of wrk, and the figure is MB/s.
        waits: the application waits, so servers with one request at a time are left out.
        proxied: an nginx stands between, beside the client on its core.
        logged: each server with an access log runs without and with it; the others are left out.
        note: explains the table.
    """

    title: str
    app: str = "benchapps:hello"
    answer: bytes = apps.HELLO
    script: str = BROWSER
    connections: int = 32
    threads: int = 0
    body: bytes | None = None
    download: bool = False
    waits: bool = False
    proxied: bool = False
    logged: bool = False
    note: str = ""

    def request(self) -> bytes:
        """Return a GET as the script makes it; in it, each %d stands for a number that is new in every request."""
        if self.script == _UNIQUE:
            return _UNIQUE_HEAD.encode()
        fields = re.findall(r'(?m)^wrk\.headers\["(.+)"\] = "(.+)"$', self.script)
        lines = ["GET / HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in fields)]
        return "\r\n".join([*lines, "", ""]).encode()


def _waits(count: int) -> Scenario:
    note = (
        f"Each request waits 10 ms, so {count * 100:,} requests/s is the ideal. Servers with threads have {count} "
        "of them; servers with one request at a time are left out: they make 100 requests/s."
    )
    found = Scenario(f"10 ms of I/O, {count} connections", "benchapps:wait", script="", note=note)
    return found._replace(connections=count, threads=count, waits=True)


def _posts(title: str, app: str, answer: bytes, note: str) -> Scenario:
    return Scenario(title, app, answer, BROWSER + _POST, body=_POSTED.encode(), note=note)


_DOWNLOAD_NOTE = "The client is bench download, for which the kernel discards all; wrk would be the limit."

SCENARIOS: Mapping[str, Scenario] = {
    "bare": Scenario("Trivial application, no headers but Host", script=""),
    "hello": Scenario("Trivial application, a browser's headers"),
    "unique": Scenario(
        "Trivial application, every request unique",
        script=_UNIQUE,
        note="Path, query, a cookie and a header of a browser's request are new in every one: no cache can help.",
    ),
    "close": Scenario(
        "A connection for each request",
        script=BROWSER + _CLOSE,
        note="The client asks for `Connection: close`. A server that closes without saying so in its answer has as "
        "many failed requests as answers, since wrk asks once more: its rate is right all the same.",
    ),
    "one": Scenario("Trivial application, 1 connection", connections=1),
    "many": Scenario("Trivial application, 500 connections", connections=500),
    "flask": Scenario("Flask", "flask_app:app", b"Hello from Flask\n"),
    "django": Scenario("Django", "django_app:application", b"Hello from Django\n"),
    "post": _posts(
        "4 kB of JSON posted",
        "benchapps:post",
        b'{"bytes": 4096}',
        "The application reads the body and answers with its length.",
    ),
    "json": _posts(
        "4 kB of JSON posted and parsed",
        "benchapps:parse",
        b'{"items": 62, "total": 4711}',
        "Most of the time goes into the application's `json.loads`, which is the same for all.",
    ),
    "large": Scenario("1 MiB response", "benchapps:large", apps.LARGE, download=True, note=_DOWNLOAD_NOTE),
    "stream": Scenario(
        "64 × 1 KiB streamed, no Content-Length",
        "benchapps:stream",
        apps.PIECE * apps.PIECES,
        script="",
        note="wrk counts an answer that ends with its connection (HTTP/1.0, wsgiref) as failed, too.",
    ),
    "file": Scenario(
        "50 MB file",
        "benchapps:file",
        b"",
        connections=4,
        download=True,
        note="With `wsgi.file_wrapper` where the server offers one. " + _DOWNLOAD_NOTE,
    ),
    "io64": _waits(64),
    "io500": _waits(500),
    "cpu": Scenario("1 ms of CPU", "benchapps:compute"),
    "log": Scenario(
        "Access log off and on", logged=True, note="Trivial application, a browser's headers; the log is a file."
    ),
    "nginx": Scenario(
        "Behind nginx",
        proxied=True,
        note="proxy_pass with kept connections; nginx and wrk share the second core, so the client side is the limit "
        "for the quicker servers.",
    ),
}
# The scenarios of earlier reports and habits under their present names.
RENAMED = {"browser": "hello"}
