"""The public names of the worker classes are the documented ones: no other name of a subclass replaces anything."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import wsgiserv
from wsgiserv.worker.base import Worker
from wsgiserv.worker.event_loop_worker import EventLoopWorker
from wsgiserv.worker.gevent_worker import GeventWorker
from wsgiserv.worker.hook_worker import HookWorker
from wsgiserv.worker.process import WorkerProcess
from wsgiserv.worker.sync import SyncWorker
from wsgiserv.worker.threads import ThreadsWorker

PAGE = Path(wsgiserv.__file__).parents[1] / "docs" / "custom-workers.md"
CLASSES = [WorkerProcess, HookWorker, Worker, EventLoopWorker, SyncWorker, ThreadsWorker, GeventWorker]


def documented() -> set[str]:
    """Return the names in the first cells of the page's tables of methods and attributes; not those of a connection."""
    text = PAGE.read_text()
    text = text[text.index("## The methods") : text.index("## Classes that were written for gunicorn")]
    text = re.sub(r"and a connection:.*?(?=\n## )", "", text, flags=re.DOTALL)
    cells = re.findall(r"^\| (`[^|]*?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)(?:\(.*?\))?`", cell)}


def names_of(kind: type[Worker]) -> set[str]:
    """Return the names that a class of ours has, or gives its instances in any of its methods."""
    stored = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(kind)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    names = {*vars(kind), *vars(kind).get("__annotations__", {}), *stored}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("kind", CLASSES)
def test_each_public_name_is_documented(kind: type[Worker]) -> None:
    assert names_of(kind) <= documented()


def test_each_documented_name_is_there() -> None:
    assert documented() == set().union(*map(names_of, CLASSES)) | {"__init__"}


def test_private_names_of_a_class_are_its_bases_own() -> None:
    """Each name has one meaning: a class of ours does not hide a private attribute of its base by accident."""
    for kind in CLASSES[4:]:
        methods = {name for name, value in vars(kind).items() if inspect.isfunction(value)}
        for base in (WorkerProcess, HookWorker, Worker, EventLoopWorker):
            stored = set(re.findall(r"self\.(_\w+)(?:: [^=]+)? = ", inspect.getsource(base)))
            assert not methods & stored, kind
