"""Changes the environment of this process: variables of environment files, and of `raw_env`."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import NamedTuple


class State(NamedTuple):
    """The variables that are put into an environment.

    Attributes:
        files: those of environment files.
        raw_env: the ``KEY=VALUE`` pairs of the setting.
    """

    files: Mapping[str, str]
    raw_env: Sequence[str]


class ProcessEnvironment:
    """Puts the variables of environment files and of `raw_env` into an environment, and takes them back.

    Args:
        environ: ``os.environ``.

    Attributes:
        state: the variables now, for `restore`.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._environ = environ
        self._before: dict[str, str | None] = {}
        self.state = State({}, ())

    def restore(self, state: State) -> None:
        """Put the variables of an earlier `state` back."""
        if state != self.state:
            self._put(state)

    def put_files(self, variables: Mapping[str, str]) -> None:
        """Replace the variables of environment files; those of `raw_env` go before them."""
        if variables != self.state.files:
            self._put(self.state._replace(files=variables))

    def apply(self, raw_env: Sequence[str]) -> None:
        """Set each ``KEY=VALUE`` of `raw_env`; other variables of the last call get their old values back."""
        self._put(self.state._replace(raw_env=raw_env))

    def _put(self, state: State) -> None:
        # First the old values, also of variables set again below: theirs must be those from before our own.
        for key, value in self._before.items():
            if value is None:
                self._environ.pop(key, None)
            else:
                self._environ[key] = value
        self._before.clear()
        self.state = state
        pairs = [pair.partition("=") for pair in state.raw_env]
        for key, value in (*state.files.items(), *((key, value) for key, _, value in pairs)):
            # A key may occur twice; the first time it still has its old value.
            self._before.setdefault(key, self._environ.get(key))
            self._environ[key] = value
