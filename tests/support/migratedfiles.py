"""Loads configuration files and what `wsgiserv migrate` makes of them, each in a process of its own.

``python migratedfiles.py`` reads the path of a directory from each line of its standard input, loads gunicorn.conf.py
and wsgiserv.conf.py there, and prints what they give as a line of JSON: two descriptions.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import FunctionType
from typing import Any

from wsgiserv.config.loader import collect
from wsgiserv.process import arm

NAMES = ("gunicorn.conf.py", "wsgiserv.conf.py")


def describe(value: Any) -> Any:
    """Return a value's text, of a function its code, the same for two runs of one source."""
    if isinstance(value, FunctionType):
        value = getattr(value, "__wrapped__", value)
        return [value.__qualname__, value.__code__.co_code.hex(), list(value.__code__.co_names)]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return type(value).__qualname__ if " at 0x" in repr(value) else repr(value)


def load_one(directory: str, name: str) -> dict[str, Any]:
    """Return the settings, notices and faults of a file."""
    os.chdir(directory)
    loaded = collect(["-c", name, "shop:app"], dict(os.environ), directory)
    settings = {
        each.name: describe(getattr(loaded.settings, each.name))
        for each in fields(loaded.settings)
        if each.name != "config"
    }
    return {
        "settings": {**settings, "given": sorted(loaded.settings.given)},
        "notices": loaded.notices,
        "faults": [re.sub(rf"{name}( line \d+)?", "FILE", str(fault)).partition("\n")[0] for fault in loaded.faults],
    }


def load_in_child(directory: str, name: str, environ: dict[str, str]) -> dict[str, Any]:
    """Return the same, of a forked child: a configuration file may do anything to its process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        arm()  # else this is a child that the file's code has forked
        os.environ.update(environ)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            text = json.dumps(load_one(directory, name))
        except BaseException as error:
            text = json.dumps({"error": repr(error)})
        with open(writer, "w") as file:
            file.write(text)
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(text) if text else {"error": "no answer"}
    return found


def main() -> None:
    """Answer the lines of the standard input."""
    for line in sys.stdin:
        directory = line.rstrip("\n")
        environ = json.loads((Path(directory) / "environ.json").read_text())
        print(json.dumps([load_in_child(directory, name, environ) for name in NAMES]), flush=True)


if __name__ == "__main__":
    main()
