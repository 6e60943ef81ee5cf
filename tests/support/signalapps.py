"""An application that does with signals what applications do; SIGNALS_AT_IMPORT says what at its import."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

HEARD: list[str] = []


def leave(number: int, frame: object) -> None:
    """The handler of many a program."""
    HEARD.append(signal.Signals(number).name)
    sys.exit(0)


def exit_at(*names: str) -> None:
    """Exit at these signals."""
    for name in names:
        signal.signal(getattr(signal, name), leave)


def chain() -> None:
    """Exit, too, but as a library does that respects whoever came first."""
    before: Any = signal.getsignal(signal.SIGTERM)

    def handler(number: int, frame: Any) -> None:
        HEARD.append("chained")
        before(number, frame)
        sys.exit(1)

    assert callable(before)
    assert signal.signal(signal.SIGTERM, handler) is before
    assert signal.getsignal(signal.SIGTERM) is handler


def loop_keeps() -> None:
    """asyncio: a loop that takes signals, and is kept."""
    import asyncio  # here and below: it is most of the time of this module's import

    loop = asyncio.new_event_loop()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
        loop.add_signal_handler(number, HEARD.append, "loop")
    globals()["kept"] = loop


def loop_gives_back() -> None:
    """asyncio: the removal gives signals their default, and takes the wakeup descriptor away."""
    import asyncio

    loop = asyncio.new_event_loop()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
        loop.add_signal_handler(number, HEARD.append, "loop")
        loop.remove_signal_handler(number)
    loop.close()


def run_loop() -> None:
    """asyncio.run(), with a handler for the time of its run."""
    import asyncio

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, HEARD.append, "loop")
        await asyncio.sleep(0.01)

    asyncio.run(main())


def defaults() -> None:
    """Give all signals their default, as before an exec."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


def ignore() -> None:
    """Ignore what ends a process."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def fails() -> None:
    """A handler with a bug."""

    def handler(number: int, frame: object) -> None:
        raise RuntimeError("a bug of the handler's")

    signal.signal(signal.SIGTERM, handler)


WAYS: dict[str, Callable[[], None]] = {
    "exits": lambda: exit_at("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT"),
    "chain": chain,
    "loop_keeps": loop_keeps,
    "loop_gives_back": loop_gives_back,
    "run_loop": run_loop,
    "defaults": defaults,
    "ignore": ignore,
    "fails": fails,
    "": lambda: None,
}
WAYS[os.environ.get("SIGNALS_AT_IMPORT", "")]()


def late(number: int, frame: object) -> None:
    """A timer's handler."""
    raise TimeoutError("the application's own timer")


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """``/do?<way>``, ``/sleep?<seconds>``, ``/wait-in-loop``, ``/alarm-late``, ``/alarm``, ``/heard``."""
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    body = b"done"
    if path == "/do":
        WAYS[query]()
    elif path == "/do-and-sleep":
        WAYS[query]()
        print("sleeping", file=environ["wsgi.errors"])
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            time.sleep(0.05)
    elif path == "/sleep":
        print("sleeping", file=environ["wsgi.errors"])
        end = time.monotonic() + float(query)
        while time.monotonic() < end:
            time.sleep(0.05)
    elif path == "/wait-in-loop":
        import asyncio

        async def main() -> None:
            told = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
            print("sleeping", file=environ["wsgi.errors"])
            await asyncio.wait_for(told.wait(), 10)

        asyncio.run(main())
    elif path == "/alarm-late":
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, 0.5)  # late enough for a crowded machine to have answered
    elif path == "/alarm-default":
        signal.setitimer(signal.ITIMER_REAL, 0.3)
    elif path == "/alarm":
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            end = time.monotonic() + 5
            while time.monotonic() < end:
                time.sleep(0.05)
        except TimeoutError:
            body = b"timed out"
    elif path == "/heard":
        body = ",".join(HEARD).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
