"""Gives each test of a log the loggers as a fresh process has them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from wsgiserv.config.settings import Settings
from wsgiserv.logs.config import ACCESS_NAMES, ERROR_NAMES
from wsgiserv.logs.error import open_error_log
from wsgiserv.logs.shared import ACCESS, ERROR


@pytest.fixture(name="loggers_as_before")
def _loggers_as_before() -> Iterator[None]:
    root = logging.root.handlers[:], logging.root.level
    yield
    open_error_log(Settings(errorlog="/dev/null"))
    for name in (*ERROR_NAMES, *ACCESS_NAMES):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.filters.clear()
    for state in (ERROR, ACCESS):
        # Else pytest gives them its own handler; the next test's log resets it, as the server's own setting.
        state.propagate = state.given_propagate = True
    logging.root.handlers[:], logging.root.level = root
