"""docs/hooks.md names what is there: each name in its tables is an attribute of the object, and each hook a setting."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import wsgiserv
from wsgiserv.app.hook_app import HookApp
from wsgiserv.config.hook_config import view_of
from wsgiserv.config.setting import Section
from wsgiserv.config.settings import SETTINGS, Settings
from wsgiserv.http.head import HeadLimits, HeadParser
from wsgiserv.logs.error import open_error_log
from wsgiserv.master.hook_worker import HookWorker
from wsgiserv.master.hooks_server import HookServer
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.worker.request_hooks import HookRequest, HookResponse
from wsgiserv.worker.sync import SyncWorker
from wsgiserv.wsgi.response import Response
from wsgiserv.wsgi.response_context import ResponseContext

PAGE = (Path(wsgiserv.__file__).parents[1] / "docs" / "hooks.md").read_text()


def names(heading: str) -> list[str]:
    """Return the names in the first cells of the table below a heading."""
    text = PAGE.partition(f"\n{heading}\n")[2]
    text = re.split(r"\n##", text)[0]
    cells = re.findall(r"^\| (`[^|]*?) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)(?:\(\))?`", cell)]


def request() -> HookRequest:
    parser = HeadParser(HeadLimits())
    line, block = parser.request_line(b"GET / HTTP/1.1"), parser.header_block(b"Host: a\r\n")
    environ = {"wsgi.url_scheme": "http", "wsgi.input": None, "wsgiserv.request_id": "1"}
    return HookRequest(view_of(Settings()), line, block, environ, {"REMOTE_ADDR": "127.0.0.1"})


def response() -> HookResponse:
    sink: Any = SimpleNamespace()
    return HookResponse(request(), Response(sink, ResponseContext(logging.getLogger("x"), b""), True, False, True))


def handle(server: HookServer) -> HookWorker:
    found = WorkerHandle(age=1, generation=1, spawned_at=0.0, timeout=30.0, graceful_timeout=30.0)
    return HookWorker(found, Settings(), server)


@pytest.mark.parametrize(
    "heading",
    [
        *("### `worker` in a worker", "### `worker` in the master", "### `server`", "### `app`"),
        *("### `cfg`", "### `log`", "### `req`", "### `resp`"),
    ],
)
def test_each_name_on_the_page_is_there(heading: str) -> None:
    settings = Settings()
    server = HookServer(settings, open_error_log(settings))
    objects: dict[str, Any] = {
        "### `worker` in the master": handle(server),
        "### `server`": server,
        "### `app`": HookApp(view_of(settings)),
        "### `cfg`": view_of(settings),
        "### `log`": server.log,
        "### `req`": request(),
        "### `resp`": response(),
    }
    found = names(heading)
    assert len(found) > 5
    if heading == "### `worker` in a worker":
        # Set in `__init__`, or of the class.
        source = "".join(
            inspect.getsource(kind) for kind in SyncWorker.__mro__ if kind.__module__.startswith("wsgiserv")
        )
        missing = [
            each
            for each in found
            if not hasattr(SyncWorker, each) and not re.search(rf"self\.{each}(: [^=]+)? = ", source)
        ]
    else:
        missing = [each for each in found if not hasattr(objects[heading], each)]
    assert missing == []


def test_all_hooks_are_on_the_page() -> None:
    hooks = {name for name, setting in SETTINGS.items() if setting.section is Section.HOOKS}
    assert set(names("## All hooks")) == hooks


def test_each_hook_has_the_arguments_of_its_declaration() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w, ]+)` \|", PAGE, re.MULTILINE)
    for name, arguments in rows:
        assert f"({arguments})" in SETTINGS[name].doc, name
    assert len(rows) == len(set(names("## All hooks")))
