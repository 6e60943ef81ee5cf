"""Many small cases in one test: cheaper than as many tests, and a failure still names its case."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

# Each case of a server that hangs lasts until a deadline: the names must be told before pytest's own timeout.
_ENOUGH_FAILURES = 20
_ENOUGH_S = 25.0


def check_each(cases: Mapping[str, T] | Iterable[tuple[str, T]], check: Callable[[T], object]) -> None:
    """Call ``check`` with every case; fail at the end with the names of all that failed, each with its traceback.

    Raises:
        ExceptionGroup: what was raised, the names in its message and in a note on each exception.
    """
    named = list(cases.items() if isinstance(cases, Mapping) else cases)
    assert named, "no cases"
    failures: list[tuple[str, Exception]] = []
    begun, tried = time.monotonic(), 0
    for name, case in named:
        tried += 1
        try:
            check(case)
        except Exception as error:
            error.add_note(f"in the case {name!r}")
            failures.append((name, error))
        except BaseException as error:  # pytest's timeout, for one
            error.add_note(f"in the case {name!r}; failed before it: {[name for name, _ in failures]}")
            raise
        if failures and (len(failures) >= _ENOUGH_FAILURES or time.monotonic() - begun > _ENOUGH_S):
            break
    if failures:
        rest = f" (of {tried} tried, then it was given up)" if tried < len(named) else ""
        names = [name for name, _ in failures]
        raise ExceptionGroup(
            f"{len(failures)} of {len(named)} cases failed{rest}: {names}", [error for _, error in failures]
        )
