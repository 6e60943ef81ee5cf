"""Shows the application to hooks under gunicorn's names: ``app`` of workers and of the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

from wsgiserv.app.loader import prepare_path
from wsgiserv.config.hook_config import HookConfig

_ELSEWHERE: Final = {
    "run": "the server runs already",
    "reload": "send SIGHUP to the master: server.reload()",
    "load_config": "the configuration is read; see cfg",
    "load_default_config": "the configuration is read; see cfg",
    "load_config_from_file": "the configuration is read; see cfg",
    "do_load_config": "the configuration is read; see cfg",
    "load_pasteapp": "see the setting paste",
    "init": "the command line is read; see cfg",
}


def not_in_master() -> NoReturn:
    """Raise: the application is asked for in the master."""
    raise RuntimeError(
        "app.wsgi() in the master: the master never imports the application, so that a reload loads changed code. "
        "Call worker.app.wsgi() in the hook post_fork, or read worker.wsgi in post_worker_init."
    )


class HookApp:
    """The application. Hooks may hang their own attributes on it.

    Args:
        cfg: the configuration.
        load: imports the application in a worker; raises in the master.

    Attributes:
        cfg: the configuration.
        callable: the WSGI application, None before it is loaded. What `post_fork` puts here is served.
    """

    def __init__(self, cfg: HookConfig, load: Callable[[], Callable[..., Any]] = not_in_master) -> None:
        self.cfg = cfg
        self.callable: Callable[..., Any] | None = None
        self.usage: str | None = None
        self.logger: object = None
        self._load = load

    @property
    def app_uri(self) -> str | None:
        """``module:app``."""
        uri: str | None = self.cfg.wsgi_app
        return uri

    @property
    def prog(self) -> str:
        """The name of the program."""
        return self.cfg.prog

    def wsgi(self) -> Callable[..., Any]:
        """Return the WSGI application; the first call in a worker loads it. Raises RuntimeError in the master."""
        if self.callable is None:
            self.callable = self.load()
        return self.callable

    def load(self) -> Callable[..., Any]:
        """Load the application. Raises as `wsgi` does."""
        return self._load()

    load_wsgiapp = load

    def chdir(self) -> None:
        """Change to `chdir`, and make it importable: the server has done so already."""
        prepare_path(self.cfg.chdir, self.cfg.pythonpath)

    def __getattr__(self, name: str) -> Any:
        if name in _ELSEWHERE:
            raise AttributeError(f"app.{name} is not here: {_ELSEWHERE[name]}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
