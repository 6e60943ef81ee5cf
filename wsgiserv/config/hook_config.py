"""Shows the configuration to hooks under gunicorn's names: ``cfg`` of workers, of the server and of the application.

The server itself reads its frozen `Settings`. A hook reads the same values through a `HookConfig`: with gunicorn's
types (whole seconds are ``int``, several values a ``list``, a hook that is not set is a function that does nothing),
and with every name of gunicorn's. A setting without a use here has gunicorn's default, or the value that the user has
given.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cached_property
from importlib import import_module
from typing import Any, Final, NoReturn

from wsgiserv.config.address import parse_address
from wsgiserv.config.daemon_address import parse_statsd_host
from wsgiserv.config.log_formats import NAMED_FORMATS
from wsgiserv.config.setting import Section, Setting
from wsgiserv.config.settings import SETTINGS, Settings, speaks_tls
from wsgiserv.config.worker_class import CLASS_PATHS, implied_by, resolve

# Settings of gunicorn 27 that may have no use here, with its defaults. One that is declared in `Settings` has the value
# of that.
_UNUSED: Final[dict[str, Any]] = {
    "asgi_disconnect_grace_period": 3,
    "asgi_lifespan": "auto",
    "asgi_loop": "auto",
    "casefold_http_method": False,
    "control_socket_mode": 0o600,
    "dirty_apps": [],
    "dirty_graceful_timeout": 30,
    "dirty_threads": 1,
    "dirty_timeout": 300,
    "dirty_workers": 0,
    "do_handshake_on_connect": False,
    "enable_stdio_inheritance": False,
    "http2_cleartext": "off",
    "http2_initial_window_size": 65535,
    "http2_max_concurrent_streams": 100,
    "http2_max_frame_size": 16384,
    "http2_max_header_list_size": 65536,
    "http_parser": "auto",
    "http_protocols": ["h1"],
    "logger_class": "gunicorn.glogging.Logger",
    "paste": None,
    "permit_obsolete_folding": False,
    "permit_unconventional_http_method": False,
    "permit_unconventional_http_version": False,
    "raw_paste_global_conf": [],
    "spew": False,
    "ssl_version": 2,  # ssl.PROTOCOL_TLS, without the import
    "strip_header_spaces": False,
    "suppress_ragged_eofs": True,
    "websocket_max_message_size": 16 * 1024 * 1024,
    "worker_tmp_dir": None,
}
_UNUSED_HOOKS: Final = ("on_dirty_starting", "dirty_post_fork", "dirty_worker_init", "dirty_worker_exit")
_UNUSED_TLS: Final = ("ssl_version", "suppress_ragged_eofs", "do_handshake_on_connect")

_ALIASES: Final = {alias: name for name, setting in SETTINGS.items() for alias in setting.aliases}
# gunicorn's name of our class, for hooks that compare it.
_CLASS_NAMES: Final = {"threads": "gthread"}


def _no_hook(*arguments: object) -> None:
    """Stand for a hook that is not set."""


def _default_ssl_context(config: object, default_ssl_context_factory: Callable[[], Any]) -> Any:
    """Stand for the hook `ssl_context`."""
    return default_ssl_context_factory()


_NO_HOOK: Final[dict[str, Callable[..., Any]]] = {"ssl_context": _default_ssl_context}

# The environment of the start, before `raw_env`; see `HookConfig.env_orig`.
_environ_at_start: dict[str, str] = {}


def view_of(settings: Settings) -> HookConfig:
    """Return the view of ``settings``, always the same one."""
    # Beside the fields: a record that is frozen has a dictionary all the same.
    found: HookConfig | None = vars(settings).get("_view")
    if found is None:
        found = vars(settings)["_view"] = HookConfig(settings)
    return found


def remember_unused(settings: Settings, given: Mapping[str, object]) -> None:
    """Keep what the user has given for settings without a use here, for hooks that read them."""
    vars(settings)["_unused"] = dict(given)


def unused_of(settings: Settings) -> Mapping[str, object]:
    """Return what `remember_unused` has kept."""
    found: Mapping[str, object] = vars(settings).get("_unused", {})
    return found


class HookSetting:
    """One setting as in gunicorn's ``cfg.settings``.

    Args:
        config: its configuration.
        name: its name.

    Attributes:
        name: its name.
        section: its topic.
        default: its value when nothing gives one.
        cli, desc, short: its flags and its help.
        order: its place among all settings.
    """

    def __init__(self, config: HookConfig, name: str, order: int) -> None:
        self._config = config
        setting: Setting | None = SETTINGS.get(_ALIASES.get(name, name))
        self.name = name
        self.order = order
        self.section = str(setting.section) if setting is not None else "Not used"
        self.default = _shown(name, setting.default if setting is not None else _UNUSED.get(name))
        self.cli = list(setting.flags) if setting is not None else None
        self.short = setting.help if setting is not None else ""
        self.desc = f"{self.short}\n{setting.doc}" if setting is not None else ""

    def get(self) -> Any:
        """Return its value."""
        return self._config.raw(self.name)

    def set(self, value: Any) -> None:
        """See `HookConfig.set`."""
        self._config.set(self.name, value)

    @property
    def value(self) -> Any:
        """Its value."""
        return self.get()

    def __lt__(self, other: HookSetting) -> bool:
        return self.order < other.order

    def __repr__(self) -> str:
        return f"<setting {self.name} = {self.value!r}>"


class HookConfig:
    """The configuration under gunicorn's names. Hooks may hang their own attributes on it.

    Args:
        settings: the configuration.

    Attributes:
        on_late_change: called with the name of a setting that a hook has changed too late; None while a change is in
            time (`on_starting`).
        usage, prog: the name of the program.
        env_orig: the environment at the start of the server.
    """

    def __init__(self, settings: Settings) -> None:
        if not _environ_at_start:
            _environ_at_start.update(os.environ)
        self._settings = settings
        self._changed: dict[str, Any] = {}
        self.on_late_change: Callable[[str], object] | None = None
        self.usage: str | None = None
        self.prog = os.path.basename(sys.argv[0]) if sys.argv else "wsgiserv"
        self.env_orig = dict(_environ_at_start)

    # ---- values ----------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Called for what is no attribute of the object or its class.
        if name.startswith("_"):
            raise AttributeError(name)
        return self.raw(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _NAMES:
            raise AttributeError(f"cfg.{name} cannot be assigned; a hook changes a setting by cfg.set({name!r}, value)")
        super().__setattr__(name, value)

    def raw(self, name: str) -> Any:
        """Return the value of a setting, in gunicorn's type. Raises AttributeError for an unknown name."""
        known = _ALIASES.get(name, name)
        if known not in _NAMES:
            raise AttributeError(f"No configuration setting for: {name}")
        if known in self._changed:
            return _shown(known, self._changed[known])
        if known in SETTINGS:
            return _shown(known, getattr(self._settings, known))
        given = unused_of(self._settings)
        default = _UNUSED.get(known)
        return _shown(known, _as_default(given[known], default) if known in given else default)

    def set(self, name: str, value: Any) -> None:
        """Change a setting.

        In `on_starting` the server takes the change over, before it opens anything. Later only hooks see it; the log
        says so. A reload reads the configuration file again.

        Raises:
            AttributeError: there is no such setting.
            ValueError, TypeError: the value is not accepted.
        """
        known = _ALIASES.get(name, name)
        if known not in _NAMES:
            raise AttributeError(f"No configuration setting for: {name}")
        if known in SETTINGS:
            try:
                value = SETTINGS[known].parse(value)
            except (ValueError, TypeError) as error:
                reason = f" ({error})" if str(error) else ""
                raise ValueError(
                    f"cfg.set({name!r}, {value!r}): not accepted{reason}. Accepted: {SETTINGS[known].accepts}"
                ) from None
            if known in ("workers", "workers_max") and not value:
                raise ValueError(f"cfg.set({name!r}, ...): a hook gives a number; 'auto' is for the configuration file")
        self._changed[known] = value
        if self.on_late_change is not None:
            self.on_late_change(known)

    def take_changes(self, but: frozenset[str] = frozenset()) -> Settings:
        """Return the settings with the changes of hooks, which this view shows from now on.

        Args:
            but: the settings whose changes come too late.
        """
        changed = {name: value for name, value in self._changed.items() if name in SETTINGS and name not in but}
        if not self._changed.keys() - but:
            return self._settings
        before = self._settings
        kind, threads = changed.get("worker_class", before.worker_class), changed.get("threads", before.threads)
        changed = {**implied_by(kind), **changed, "worker_class": resolve(kind, threads)}
        after = replace(before, **changed)
        unused = {name: value for name, value in self._changed.items() if name not in SETTINGS}
        remember_unused(after, {**unused_of(before), **unused})
        vars(after)["_view"] = self
        self._settings = after
        self._changed = {name: value for name, value in self._changed.items() if name in but}
        return after

    @cached_property
    def settings(self) -> dict[str, HookSetting]:
        """All settings by name."""
        return {name: HookSetting(self, name, order) for order, name in enumerate((*_NAMES, *_ALIASES))}

    def __str__(self) -> str:
        width = max(map(len, self.settings))
        values = {name: setting.get() for name, setting in sorted(self.settings.items())}
        lines = (
            f"{name:{width}} = {f'<{value.__qualname__}()>' if hasattr(value, '__qualname__') else value}"
            for name, value in values.items()
        )
        return "\n".join(lines)

    # ---- what gunicorn computes of its settings --------------------------------------------------------

    @property
    def worker_class_str(self) -> str:
        """The name of the worker class: ``sync``, ``gthread`` (for `threads`), ``gevent``, or a user's path."""
        kind = self._worker_class
        return _CLASS_NAMES.get(kind, kind) if isinstance(kind, str) else kind.__name__

    @property
    def worker_class(self) -> type[Any]:
        """The worker class. A user's class given by its path is imported for the answer."""
        kind = self._worker_class
        if not isinstance(kind, str):
            return kind
        module, _, name = CLASS_PATHS.get(kind, kind).rpartition(".")
        # By name, as in `wsgiserv.config.worker_class.known`: this layer is below the workers.
        found: type[Any] = getattr(import_module(module), name)
        return found

    @property
    def _worker_class(self) -> str | type[Any]:
        kind: str | type[Any] = self._changed.get("worker_class", self._settings.worker_class)
        return kind

    @property
    def address(self) -> list[Any]:
        """The addresses of `bind`: (host, port), the path of a Unix socket, or the number of a descriptor."""
        return [_address(text) for text in self.bind]

    @property
    def uid(self) -> int:
        """The workers' user id."""
        return int(self.user)

    @property
    def gid(self) -> int:
        """The workers' group id."""
        return int(self.group)

    @property
    def proc_name(self) -> str:
        """The name in the processes' titles."""
        return str(self.raw("proc_name") or self.raw("wsgi_app") or self.raw("default_proc_name"))

    @property
    def logger_class(self) -> Any:
        """The class of the error log's logger, or the class that the user has given."""
        given = self.raw("logger_class")
        return given if isinstance(given, type) else type(logging.getLogger("gunicorn.error"))

    @property
    def is_ssl(self) -> bool:
        """Whether the listeners speak TLS."""
        return speaks_tls(self._settings)

    @property
    def ssl_options(self) -> dict[str, Any]:
        """The settings about TLS."""
        names = [name for name, setting in SETTINGS.items() if setting.section is Section.TLS]
        return {name: self.raw(name) for name in (*names, *_UNUSED_TLS)}

    @property
    def env(self) -> dict[str, str]:
        """The variables of `raw_env`."""
        return dict(pair.split("=", 1) for pair in self.raw_env)

    @property
    def paste_global_conf(self) -> dict[str, str]:
        """The pairs of `raw_paste_global_conf`."""
        pairs = [re.split(r"(?<!\\)=", pair, maxsplit=1) for pair in self.raw_paste_global_conf or ()]
        return {pair[0].replace("\\=", "="): pair[-1].replace("\\=", "=") for pair in pairs}

    def forwarded_allow_networks(self) -> list[Any]:
        """Return `forwarded_allow_ips` as networks, without ``*``."""
        return _networks(self.forwarded_allow_ips)

    def proxy_allow_networks(self) -> list[Any]:
        """Return `proxy_allow_ips` as networks, without ``*``."""
        return _networks(self.proxy_allow_ips)

    def get_cmd_args_from_env(self) -> list[str]:
        """Return the arguments in GUNICORN_CMD_ARGS."""
        return shlex.split(self.env_orig.get("GUNICORN_CMD_ARGS", ""))

    def validate(self) -> None:
        """Do nothing: the configuration was checked when it was read."""

    def parser(self) -> NoReturn:
        """Raise: the flags are read by now."""
        raise NotImplementedError("cfg.parser(): wsgiserv has no argparse parser; wsgiserv --help-all lists all flags")


_NAMES: Final[dict[str, None]] = dict.fromkeys((*(each.name for each in fields(Settings)), *_UNUSED, *_UNUSED_HOOKS))


def _shown(name: str, value: Any) -> Any:
    """Return a value in gunicorn's type."""
    if value is None and (name in _UNUSED_HOOKS or (name in SETTINGS and SETTINGS[name].section is Section.HOOKS)):
        return _NO_HOOK.get(name, _no_hook)
    if isinstance(value, tuple):
        return list(value)
    # 30, not 30.0: hooks format it, and give it to functions that take whole numbers.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if name == "statsd_host" and value is not None:
        return parse_statsd_host(value)
    if name == "access_log_format":
        return NAMED_FORMATS.get(value, value)
    if name == "worker_class" and isinstance(value, str):
        return _CLASS_NAMES.get(value, value)
    return list(value) if isinstance(value, list) else value


def _as_default(given: object, default: object) -> object:
    """Return what was given, as text perhaps, in the type of the default."""
    if isinstance(given, str):
        if isinstance(default, bool):
            return given.lower() not in ("false", "no", "off", "0", "")
        if isinstance(default, int):
            try:
                return int(given, 0)
            except ValueError:
                return given
        if isinstance(default, list):
            return [part for part in re.split(r"[,\s]+", given) if part]
    return given


def _address(text: str) -> Any:
    found = parse_address(text)
    if found.kind == "unix":
        return found.path
    return found.fd if found.kind == "fd" else (found.host or "0.0.0.0", found.port)


def _networks(names: list[str]) -> list[Any]:
    return [ipaddress.ip_network(name) for name in names if name != "*"]
