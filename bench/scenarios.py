"""What bench.compare asks of the servers: applications, loads, right answers, and who takes part.

Owns: `SCENARIOS`, the scripts for wrk. Must not know: the servers' commands, the figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from bench import compareapp
from bench.hello import BROWSER

FILE_BYTES = 50_000_000

_POSTED = json.dumps(
    {
        "total": 4711,
        "items": [
            {"id": number, "name": f"an article of some kind, number {number}"} for number in range(62)
        ],
    }
).ljust(4096)

# Everything that differs is new in every request: path, query, a header of its own, cookie. One string.format, since
# wrk must not be what is measured.
_UNIQUE = """
local number = 100000000
local template = table.concat({
  "GET /items/%d/page?visit=%d HTTP/1.1",
  "Host: 127.0.0.1",
  "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
  "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
  "Accept-Language: en-GB,en;q=0.5",
  "Accept-Encoding: gzip, deflate, br, zstd",
  "Referer: http://127.0.0.1/shop/list?page=2",
  "Cookie: session=0123456789abcdef0123456789%d; theme=dark",
  "Upgrade-Insecure-Requests: 1",
  "Sec-Fetch-Dest: document",
  "Sec-Fetch-Mode: navigate",
  "X-Trace: 5f2b9c1e-77aa-4d1e-%d",
  "", ""}, "\\r\\n")
local format = string.format
request = function()
  number = number + 1
  return format(template, number, number, number, number)
end
"""

_CLOSE = 'wrk.headers["Connection"] = "close"\n'
_POST = f"""
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[{_POSTED}]]
"""


class Scenario(NamedTuple):
    """One comparison.

    Attributes:
        title: of its table.
        app: what the servers serve.
        answer: the body of the right answer.
        script: for wrk, in Lua.
        connections: how many are open at once.
        threads: of the servers that have them; 0 for as many as the server usually has.
        body: what is posted.
        download: bench.download is the client in place of wrk; the figure is MB/s.
        waits: the application waits, so who serves one request at a time does not take part.
        proxied: there is an nginx between, beside the client on its core.
        logged: the servers take part twice, the second time with an access log; the others not at all.
        note: what to know of the table.
    """

    title: str
    app: str = "bench.compareapp:hello"
    answer: bytes = compareapp.HELLO
    script: str = ""
    connections: int = 32
    threads: int = 0
    body: bytes | None = None
    download: bool = False
    waits: bool = False
    proxied: bool = False
    logged: bool = False
    note: str = ""


_WAITS_NOTE = (
    "Each request waits 10 ms, so {ideal:,} requests/s is the ideal. Servers with threads have {connections} of them; "
    "who runs one request at a time is left out: it makes 100 requests/s."
)
_DOWNLOAD_NOTE = (
    "The client is bench.download, which has the kernel discard what it reads; wrk would be the limit."
)

SCENARIOS: Mapping[str, Scenario] = {
    "bare": Scenario("Trivial application, no headers but Host"),
    "browser": Scenario("Trivial application, a browser's headers", script=BROWSER),
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
    "one": Scenario("Trivial application, 1 connection", script=BROWSER, connections=1),
    "many": Scenario("Trivial application, 500 connections", script=BROWSER, connections=500),
    "flask": Scenario("Flask", "flask_app:app", b"Hello from Flask\n", BROWSER),
    "django": Scenario("Django", "django_app:application", b"Hello from Django\n", BROWSER),
    "post": Scenario(
        "4 kB of JSON posted",
        "bench.compareapp:post",
        b'{"bytes": 4096}',
        BROWSER + _POST,
        body=_POSTED.encode(),
        note="The application reads the body and tells its length.",
    ),
    "json": Scenario(
        "4 kB of JSON posted and parsed",
        "bench.compareapp:parse",
        b'{"items": 62, "total": 4711}',
        BROWSER + _POST,
        body=_POSTED.encode(),
        note="Most of the time goes into the application's `json.loads`, which is the same for all.",
    ),
    "large": Scenario(
        "1 MiB response", "bench.compareapp:large", compareapp.LARGE, download=True, note=_DOWNLOAD_NOTE
    ),
    "stream": Scenario(
        "64 × 1 KiB streamed, no Content-Length",
        "bench.compareapp:stream",
        compareapp.PIECE * compareapp.PIECES,
        note="wrk counts an answer that ends with its connection (HTTP/1.0, wsgiref) as failed, too.",
    ),
    "file": Scenario(
        "50 MB file",
        "bench.compareapp:file",
        b"",
        connections=4,
        download=True,
        note="With `wsgi.file_wrapper` where the server offers one. " + _DOWNLOAD_NOTE,
    ),
    "io64": Scenario(
        "10 ms of I/O, 64 connections",
        "bench.compareapp:wait",
        connections=64,
        threads=64,
        waits=True,
        note=_WAITS_NOTE.format(ideal=6_400, connections=64),
    ),
    "io500": Scenario(
        "10 ms of I/O, 500 connections",
        "bench.compareapp:wait",
        connections=500,
        threads=500,
        waits=True,
        note=_WAITS_NOTE.format(ideal=50_000, connections=500),
    ),
    "cpu": Scenario("1 ms of CPU", "bench.compareapp:compute", script=BROWSER),
    "log": Scenario(
        "Access log off and on",
        script=BROWSER,
        logged=True,
        note="Trivial application, a browser's headers; the log is a file.",
    ),
    "nginx": Scenario(
        "Behind nginx",
        script=BROWSER,
        proxied=True,
        note="proxy_pass with kept connections; nginx and wrk share the second core, so the client side is the limit "
        "for the quicker servers.",
    ),
}
