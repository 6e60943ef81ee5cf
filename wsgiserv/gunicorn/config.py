"""The configuration object of programs, `Config`, made from the one table of settings."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from wsgiserv.config.argv import argument_parser
from wsgiserv.config.file import find_config_file
from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY, Ignored
from wsgiserv.config.loader import Loaded
from wsgiserv.config.setting import Setting as Declaration
from wsgiserv.config.settings import SETTINGS, speaks_tls
from wsgiserv.config.values import TooLarge
from wsgiserv.config.worker_class import resolve
from wsgiserv.gunicorn.util import parse_address


class Setting:
    """One setting and its value.

    Attributes:
        name: its name.
        section: its topic.
        cli: its flags.
        short: one sentence about it.
        default: the value without any other.
        value: its value.
        raw: the value that a program has set, as given; None if none has.
    """

    def __init__(self, name: str, declared: Declaration | Ignored) -> None:
        self.name = name
        self._declared = declared
        self.cli = list(declared.flags)
        if isinstance(declared, Ignored):
            self.section, self.short = "Ignored", declared.instead
            self.default = next(iter(declared.defaults), False if declared.switch else None)
        else:
            self.section, self.short = str(declared.section), declared.help
            self.default = _shown(declared.default)
        self.value = self.default
        self.raw: Any = None

    def get(self) -> Any:
        """Return the value."""
        return self.value

    def set(self, val: Any) -> None:
        """Set the value. Raises ValueError if it is not accepted."""
        self.value = self.default if val is None else self._parsed(val)
        self.raw = val

    def show(self, value: Any) -> None:
        """Set the value to one that a configuration has."""
        self.value = _shown(value)

    def _parsed(self, val: Any) -> Any:
        declared = self._declared
        if isinstance(declared, Ignored):
            return val
        try:
            return _shown(declared.parse(val))
        except TooLarge as error:
            if declared.clamped:
                return declared.parse(error.largest)
            raise self._refused(val) from error
        except Exception as error:  # also what the attributes of an odd object raise
            raise self._refused(val) from error

    def _refused(self, val: Any) -> ValueError:
        assert isinstance(self._declared, Declaration)
        return ValueError(f"{self.name} = {val!r} is not accepted. Accepted: {self._declared.accepts}.")

    def __lt__(self, other: Setting) -> bool:
        return (self.section, self.name) < (other.section, other.name)

    def __repr__(self) -> str:
        return f"<Setting {self.name} = {self.value!r}>"


def _shown(value: Any) -> Any:
    """Return a value as programs know it: a list for several."""
    return list(value) if isinstance(value, tuple) else value


def make_settings(ignore: Iterable[str] | None = None) -> dict[str, Setting]:
    """Return all settings, ours and gunicorn's, by their names, each with its default.

    Args:
        ignore: names to leave out.
    """
    left_out = set(ignore or ())
    found: dict[str, Setting] = {}
    for name, setting in SETTINGS.items():
        for each in (name, *setting.aliases):
            found[each] = Setting(each, setting)
    for name, ignored in GUNICORN_ONLY.items():
        if not ignored.old:
            found[name] = Setting(name, ignored)
    return {name: each for name, each in found.items() if name not in left_out}


KNOWN_SETTINGS: list[Setting] = list(make_settings().values())


class Config:
    """The configuration of a program: each setting is an attribute; `set` changes one.

    Attributes:
        settings: the settings by name.
        usage, prog: as of `argparse.ArgumentParser`.
        env_orig: the environment at the start.
    """

    settings: dict[str, Setting]

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        self.settings = make_settings()
        self.usage = usage
        self.prog = prog or os.path.basename(sys.argv[0])
        self.env_orig = dict(os.environ)
        # What the server's own sources say (`Application`); None in a program that sets all values itself.
        self._loaded: Loaded | None = None

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("settings", {})
        if name not in settings:
            raise AttributeError(f"No configuration setting for: {name}")
        return settings[name].get()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("settings", {}):
            raise AttributeError(f"use cfg.set({name!r}, value)")
        super().__setattr__(name, value)

    def __str__(self) -> str:
        return "\n".join(f"{name:30} = {self.settings[name].value}" for name in sorted(self.settings))

    def set(self, name: str, value: Any) -> None:
        """Set a setting. Raises AttributeError for an unknown name, ValueError for a value that is not accepted."""
        if name not in self.settings:
            raise AttributeError(f"No configuration setting for: {name}")
        self.settings[name].set(value)

    def validate(self) -> None:
        """Do nothing: the settings are checked against each other at the start of the server."""

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of the command line's flags."""
        return argument_parser()

    def get_cmd_args_from_env(self) -> list[str]:
        """Return the arguments in ``GUNICORN_CMD_ARGS``."""
        return shlex.split(self.env_orig.get("GUNICORN_CMD_ARGS", ""))

    # ---- what follows from several settings --------------------------------------------------------------

    @property
    def worker_class_str(self) -> str:
        """The name of the worker class."""
        kind = resolve(self.settings["worker_class"].get(), self.settings["threads"].get())
        return kind if isinstance(kind, str) else kind.__name__

    @property
    def address(self) -> list[Any]:
        """The addresses of `bind`."""
        return [parse_address(each) for each in self.settings["bind"].get()]

    @property
    def uid(self) -> int:
        """The number of `user`."""
        return int(self.settings["user"].get())

    @property
    def gid(self) -> int:
        """The number of `group`."""
        return int(self.settings["group"].get())

    @property
    def env(self) -> dict[str, str]:
        """The variables of `raw_env`."""
        return dict(each.split("=", 1) for each in self.settings["raw_env"].get())

    @property
    def is_ssl(self) -> bool:
        """Whether the listeners speak TLS."""
        return speaks_tls(self)

    # ---- for the server ----------------------------------------------------------------------------------

    def show(self, loaded: Loaded) -> None:
        """Show a configuration's values; what is set from now on goes before them."""
        self._loaded = loaded
        for name, source in loaded.sources.items():
            if source != "default":
                self.settings[name].show(getattr(loaded.settings, name))

    def given(self) -> tuple[Loaded | None, Mapping[str, object]]:
        """Return the configuration shown, if there is one, and the raw values that the program has set."""
        return self._loaded, {name: each.raw for name, each in self.settings.items() if each.raw is not None}


def get_default_config_file() -> str | None:
    """Return the path of the configuration file that is read without ``-c``; None without one."""
    found = find_config_file(os.getcwd())
    return os.path.join(os.getcwd(), found) if found is not None else None
