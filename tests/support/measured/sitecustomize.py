"""Saves the coverage of a process that ends by os._exit(), for servers started under ``pytest --cov``.

Python imports this module at the start of each process that has this directory on its path. coverage's own patch of
os._exit() saves the data of the process that started coverage; the server binds the function when it is imported, and
its workers are forked afterwards.
"""

import os

if "COVERAGE_PROCESS_CONFIG" in os.environ or "COVERAGE_PROCESS_START" in os.environ:
    import coverage

    _exit_now = os._exit

    def _save_and_exit(status: int) -> None:
        try:
            current = coverage.Coverage.current()
            if current is not None:
                current.stop()
                current.save()
        finally:
            _exit_now(status)

    os._exit = _save_and_exit  # type: ignore[assignment]
