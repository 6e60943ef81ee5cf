"""What all tests share: the harness of tests/support, an environment that configures nothing by itself, and economy.

Economy: a server costs 0.1 s of a processor, and there are hundreds. So most are forked from a process that has made
the imports (tests/support/forkserver.py), they never compile what could have been compiled once, the whole suite runs
in several processes, and the tests that share a server meet in one of them.
"""

from __future__ import annotations

import atexit
import compileall
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import hypothesis
import pytest

import wsgiserv

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parent

sys.path.insert(0, str(TESTS / "support"))

pytest_plugins = ["server_fixtures"]

# Even where PYTHONDONTWRITEBYTECODE is set: to rewrite and compile the tests anew is half of their collection, in
# each process of -n. Git ignores what is written.
sys.dont_write_bytecode = False

# The longest temporary directory below which the path of every test's Unix socket is within 107 bytes (unix(7)).
_LONGEST_TEMPORARY = 16


def _shorten_temporary_directory() -> None:
    """Take a directory with a short, plain path in place of a TMPDIR that is too long for Unix sockets, or has blanks.

    Tests write paths into request targets, configuration files of other programs and shell commands.
    The environment of pytest-xdist's processes has the short one already.
    """
    given = os.path.realpath(tempfile.gettempdir())
    is_fit = len(os.fsencode(given)) <= _LONGEST_TEMPORARY and re.fullmatch(r"[\w./-]+", given, re.ASCII)
    if is_fit or _SHARED_OUT in os.environ:
        return
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        try:
            short = tempfile.mkdtemp(prefix="wt", dir=place)
        except OSError:
            continue
        atexit.register(shutil.rmtree, short, ignore_errors=True)
        os.environ["TMPDIR"] = tempfile.tempdir = short
        return


for _name in ("GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS", "SENDFILE"):
    os.environ.pop(_name, None)
for _name in [name for name in os.environ if name.startswith("WSGISERV_")]:
    if not _name.startswith(("WSGISERV_TEST", "WSGISERV_REQUIRE_")):
        del os.environ[_name]

# A shell's script has its background ignore these, and so would every program that is tested here, as it starts.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

_SHARED_OUT = "WSGISERV_TESTS_SHARED_OUT"
# A run of everything takes one worker class for each test that is for all three; "1" in the first has it take each.
_EVERY_CLASS, _ONE_CLASS = "WSGISERV_TESTS_EVERY_CLASS", "WSGISERV_TESTS_ONE_CLASS"
_shorten_temporary_directory()

# Files of tests/support most of whose tests talk to a server of `shared_servers`: they run together, per worker class.
# A file that is not here works as well; its shared servers are then started in each process of pytest-xdist.
SHARING = (
    *("bodies", "corpus", "environ", "files", "frameworks", "http", "limits", "logs", "proxies"),
    *("refusals", "responses", "startup", "streaming", "timeouts", "tls", "uwsgi", "websocket_conformance"),
)
_SHARING = re.compile(rf"tests/integration/test_live_(?:{'|'.join(SHARING)})\.py::.*\[(sync|threads|gevent)\b")


# How long an example takes depends on what else runs.
hypothesis.settings.register_profile("wsgiserv", deadline=None)
hypothesis.settings.load_profile("wsgiserv")


# They take more than some seconds each, most of it waiting: so they begin while others are left to run beside them.
_LONG = re.compile(
    r"::(?:test_sync_serves_and_obeys|test_an_overdue_request_is_interrupted_where_it_waits|test_a_worker_is_recycled"
    r"|test_who_waits_behind_a_long_call_is_handed_on|test_a_reload_that_fails_harms_nobody|test_memory_stays_where"
    r"|test_a_fault_of_nobody|test_where_nothing_is_handed_over|test_a_busy_worker_shares|test_a_new_client_is_answered"
    r"|test_grows_under_load|test_helpers_go_on_after_a_fork|test_frames_come_again|test_idle_workers_are_not_taken"
    r"|test_connections_survive|test_hangs_tell_where|test_waiting_for_a_client|test_a_child_has_none_of_the_servers"
    r"|test_ticket_keys_are_renewed|test_a_silent_worker_is_killed|test_a_handshake_and_part|test_the_next_master_lives"
    r"|test_progress_of_a_slow_reader|test_a_whole_day|test_a_surviving_child|test_whole_and_byte_by_byte)"
)


# The groups of tests: a directory of tests/ and the mark of all tests in it.
GROUPS = ("unit", "integration", "system")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the other groups' files unread where ``-m`` names one group: most of their cost is the collection."""
    if collection_path.parent == TESTS and collection_path.name in GROUPS:
        wanted = config.option.markexpr.strip()
        return True if wanted in GROUPS and wanted != collection_path.name else None
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test by its directory, before ``-m`` selects."""
    group = item.path.relative_to(TESTS).parts[0]
    if group in GROUPS:
        item.add_marker(group)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs by request only, and put the long tests first when several processes share them out."""
    left_out: list[pytest.Item] = []
    if "gunicorn_files" not in config.option.markexpr:
        left_out += [item for item in items if item.get_closest_marker("by_request")]
    if _ONE_CLASS in os.environ:
        left_out += _of_other_classes(items)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    # No process is to begin a long test when the others have nothing left to do.
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _LONG.search(item.nodeid) is None)


def _of_other_classes(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return all but one of each three items that differ by their worker class; always the same, by their name."""
    variants: dict[str, list[pytest.Item]] = {}
    for item in items:
        name = re.sub(r"([\[-])(?:sync|threads|gevent)(?=[-\]])", r"\1", item.nodeid, count=1)
        variants.setdefault(name, []).append(item)
    threes = ((name, found) for name, found in variants.items() if len(found) == 3)
    return [item for name, found in threes for item in found if item is not found[crc32(name.encode()) % 3]]


def pytest_configure(config: pytest.Config) -> None:
    """Compile what servers import: they write no bytecode themselves (see server.py)."""
    if not hasattr(config, "workerinput"):
        tests = re.compile(r"/(?:test_|conftest)\w*\.py$")
        for directory in (Path(wsgiserv.__file__).parent, TESTS / "support", TESTS / "corpus"):
            # Where nothing may be written it says False, and servers compile for themselves.
            compileall.compile_dir(directory, maxlevels=3, rx=tests, quiet=2)
        if getattr(config.option, "numprocesses", None):  # see pytest_cmdline_main
            _rewrite_once(config)


def _rewrite_once(config: pytest.Config) -> None:
    """Rewrite the assertions of all test modules, which each process of ``-n`` would do for itself after a checkout.

    It is not public how. Where it is done otherwise, the processes do it.
    """
    try:
        from _pytest.assertion import rewrite

        for path in TESTS.rglob("test_*.py"):
            cached = rewrite.get_cache_dir(path) / (path.stem + rewrite.PYC_TAIL)
            if rewrite._read_pyc(path, cached) is None:
                cached.parent.mkdir(exist_ok=True)
                known, code = rewrite._rewrite_test(path, config)
                rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, known, cached)
    except Exception:
        return


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share a run of everything between processes, where pytest-xdist is installed and nobody has said ``-n``.

    Tests of servers wait more than they compute, so there are three processes for each processor; the unit tests
    compute. Such a run takes one worker class for most tests, unless it is told to take all.
    """
    if _SHARED_OUT in os.environ:  # by the process that has started this one
        return
    os.environ[_SHARED_OUT] = "1"
    option = config.option
    everything = {Path(arg).resolve() for arg in config.args} <= {TESTS, TESTS.parent}
    selects = option.keyword or option.collectonly or option.usepdb or getattr(option, "lf", False)
    if everything and not selects and getattr(option, "numprocesses", 1) is None:
        each = 1 if option.markexpr.strip() == "unit" else 3
        option.numprocesses = min(each * (os.cpu_count() or 1), 12)
        if os.environ.get(_EVERY_CLASS) != "1":
            os.environ[_ONE_CLASS] = "1"
        _share_out_coverage(config)


def _share_out_coverage(config: pytest.Config) -> None:
    """Make pytest-cov (``--cov``) expect several processes: it has decided for one before this file was read."""
    plugin = config.pluginmanager.get_plugin("_cov")
    if plugin is not None and plugin.cov_controller is not None:
        from pytest_cov.engine import DistMaster

        plugin.cov_controller.cov.stop()
        plugin.start(DistMaster, config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Give each process of ``-n`` whole groups of tests, unless another ``--dist`` is asked for."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):
        """Tests with their own servers go singly, so that those that wait overlap; the others by file."""

        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if found := _SHARING.match(nodeid):
                return f"{file} {found[1]}"
            return nodeid if not file.startswith("tests/unit/") else file

    return ByServer(config, log)
