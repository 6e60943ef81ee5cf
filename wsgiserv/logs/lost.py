"""The access log's lines for requests whose worker is gone.

Owns: what the access log can know of a request from its request line; the statuses 000 and 504 of such lines.
Must not know: the scoreboard, why the worker is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from wsgiserv.errors import ConfigError
from wsgiserv.logs.access import borrowed_access_log
from wsgiserv.privileges import acting_as

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

__all__ = ["KILLED", "NO_RESPONSE", "LostRequest", "log_lost_requests"]


class _NoStatus(int):
    """Zero, which the text formats show as curl shows a response that never came."""

    def __str__(self) -> str:
        return "000"


# The worker has died under the request, and its client saw the connection end.
NO_RESPONSE: Final = _NoStatus(0)
# The server has cut it: the worker took too long, or was to leave at once; its client saw the connection end, too.
KILLED: Final = 504


class LostRequest(NamedTuple):
    """A request that was in the application when its worker ended.

    Attributes:
        request_line: as far as it was noted, 408 bytes.
        peer: the client's address; empty for a Unix socket.
        request_id: its id.
        age_s: how long it had been in the application, in seconds.
        logged: whether its worker has written its line to the access log already.
    """

    request_line: str
    peer: str
    request_id: str
    age_s: float
    logged: bool = False


def log_lost_requests(
    settings: Settings, error_log: logging.Logger, pid: int, requests: Sequence[LostRequest], status: int
) -> None:
    """Write a line for each of ``requests`` to the access log, if there is one. Called by the master. Never raises.

    The log is opened for these lines alone, so that a rotation needs no thought. What the lines cannot know is ``-``.

    Args:
        settings: the configuration that the worker served with.
        error_log: told when it cannot be done.
        pid: the worker's.
        requests: the lost ones.
        status: `NO_RESPONSE` or `KILLED`.
    """
    requests = [lost for lost in requests if not lost.logged]
    if not requests:
        return
    try:
        with acting_as(settings), borrowed_access_log(settings, error_log) as access:
            if access is not None:
                for lost in requests:
                    access.log_for(pid, environ_of(lost), status, lost.age_s)
    except (ConfigError, OSError) as error:
        error_log.warning("The requests that worker %d has lost are not in the access log: %s", pid, error)


def environ_of(lost: LostRequest) -> dict[str, Any]:
    """Return what the access log asks of an environ, as far as the request line has it."""
    method, _, rest = lost.request_line.partition(" ")
    target, _, protocol = rest.rpartition(" ")
    if not protocol.startswith("HTTP/"):  # a line that was cut, or another protocol's
        target, protocol = rest, ""
    path, _, query = target.partition("?")
    environ = {
        "REMOTE_ADDR": lost.peer,
        "REQUEST_METHOD": method,
        "RAW_URI": target,
        "PATH_INFO": unquote_to_bytes(path.encode("latin-1")).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": protocol or None,
        "wsgiserv.request_id": lost.request_id or None,
    }
    return {key: value for key, value in environ.items() if value is not None}
