"""tests/gunicorn_files: each configuration file does under wsgiserv what it does under gunicorn.

The same steps run under both servers (see `gunicornfiles.Case`), and everything observed is compared. What differs is
in `DIFFERENCES`, with its reason, and nowhere else. wsgiserv finds no gunicorn on its path; files that import
gunicorn run a second time, where it is installed. A dozen files run by default; all of them under
``-m gunicorn_files``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gunicorn.config
import pytest
import trustme
from gunicornfiles import FILES, THEIRS, Case, all_cases, observe
from rootserver import needs_public_python, public_directory

PAGE = Path(__file__).parents[2] / "docs" / "migration-from-gunicorn.md"

# The pages' words for what differs on purpose: docs/migration-from-gunicorn.md has each sentence.
_QUOTES = r"In the access log a client's quote is `\x22`, in JSON `\u0022`; gunicorn writes `\"`."
_STATUS = "An application that cannot be loaded ends the start with status 4; gunicorn has 3 when the module raises."
_REMOVED = "Once `forwarded_allow_ips` is set, the forwarded headers of others are removed; gunicorn passes them on."
_STRANGER = "A PROXY header of a peer that is not in `proxy_allow_ips` is answered with 400; gunicorn has 403."
_ROOT_PATH = "`root_path` counts for WSGI applications, too; gunicorn has it for ASGI alone."
_SERVER = (
    "What a file sets `gunicorn.SERVER_SOFTWARE` to is the `Server` header; gunicorn takes `gunicorn.SERVER` alone."
)
_ABORTED = "A request that `timeout` ends gets no answer: its connection is closed; gunicorn's `sync` answers 500."
_STRICT = "Folded and padded header lines are always refused, and a method keeps its case."
_UMASK = "`umask` is the mask of the workers, too; gunicorn has it for its own files."
_UWSGI = 'With `protocol = "uwsgi"`, `REMOTE_ADDR` is the client that nginx names; gunicorn has nginx\'s own address.'
_REFUSED = "A worker class with a way of its own to serve (`run`, `handle`, `handle_request`, `accept`) is refused."
_HOOK_STATUS = "A hook that raises before the server is ready ends the start with status 3; gunicorn has 1."
_SCRIPT_NAME = "A path outside `SCRIPT_NAME` is answered with 400; gunicorn 27 answers 500."
_SERVER_NAME = (
    "At a Unix socket `SERVER_NAME` is `localhost`; gunicorn copies the client's `Host`, which applications read first."
)
_TWICE = "A `logconfig_dict` without `loggers` writes each line of the two logs once; gunicorn's also go to `root`."

# What differs on purpose: the file, the observation, the reason. An entry that is not needed is a failure, too.
DIFFERENCES: dict[str, dict[str, str]] = {
    "access_every_atom": {"stdout": _QUOTES},
    "access_json_by_hand": {"stdout": _QUOTES},
    "application_is_broken": {"exit": _STATUS},
    "logconfig_dict_partial": {"stdout": _TWICE},
    "proxy_not_the_one": {"answers": _REMOVED},
    "on_starting_raises": {"exit": _HOOK_STATUS},
    "proxy_protocol_of_a_stranger": {"answers": _STRANGER},
    "root_path": {"answers": _ROOT_PATH},
    "script_name": {"answers": _SCRIPT_NAME},
    "script_name_of_the_environment": {"answers": _SCRIPT_NAME},
    "server_software_old_trick": {"answers": _SERVER},
    "timeout_of_a_request": {"answers": _ABORTED},
    "tolerant_parser": {"answers": _STRICT},
    "umask": {"answers": _UMASK},
    "unix_server_name": {"answers": _SERVER_NAME},
    "when_ready_raises": {"exit": _HOOK_STATUS},
    "uwsgi_protocol": {"answers": _UWSGI},
    "worker_class_handle": dict.fromkeys(("answers", "exit", "notes", "step 1: get /"), _REFUSED),
}

# One of each kind, the quickest: the first that break when hooks, logs, headers or precedence do.
BY_DEFAULT = (
    *("access_every_atom", "arguments_in_the_environment", "configuration_object", "django_behind_nginx"),
    *("flask_container", "lifecycle_order", "logconfig_dict_json", "logger_redacts", "on_starting_exits"),
    *(
        "platform_variables_and_a_file",
        "proxy_in_another_container",
        "request_timing",
        "server_object",
        "worker_object",
    ),
)

CASES = all_cases()


def issue_certificate(directory: Path) -> None:
    """Write server.pem and server.key."""
    certificate = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert("shop.example")
    certificate.private_key_pem.write_to_path(str(directory / "server.key"))
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(str(directory / "server.pem"), append=number > 0)


def parameters() -> Iterator[Any]:
    for case in CASES:
        marks = [pytest.mark.gunicorn_files]
        if case.name not in BY_DEFAULT:
            marks.append(pytest.mark.by_request)
        if "root" in case.flags:
            marks += [
                pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user"),
                needs_public_python,
            ]
        yield pytest.param(case, id=case.name, marks=marks)


@contextmanager
def directory_of(case: Case, tmp_path: Path) -> Iterator[Path]:
    """Give a directory that the server's workers can enter."""
    if "root" not in case.flags:
        yield tmp_path
        return
    with public_directory() as directory:
        yield directory


@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", [*parameters()])
def test_a_file_does_the_same(case: Case, tmp_path: Path) -> None:
    with directory_of(case, tmp_path) as directory:
        theirs = observe(case, THEIRS, directory / "theirs" / "site", issue_certificate)
        failed = [name for name in theirs if name.startswith("step")]
        assert not failed, f"gunicorn does not take the steps: {theirs}"
        for number, server in enumerate(case.servers):
            site = directory / f"ours-{number}" / "site"
            ours = observe(case, server, site, issue_certificate)
            compare(case, server, theirs, ours, (site / "stderr").read_text("utf-8", "backslashreplace"))


def compare(case: Case, server: str, theirs: dict[str, Any], ours: dict[str, Any], errors: str) -> None:
    """Fail with what differs and is not listed, or is listed and does not differ."""
    differing = {name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)}
    listed = set(DIFFERENCES.get(case.name, ()))
    faults = "\n".join(
        f"{name}\n  gunicorn: {theirs.get(name)!r}\n  {server}: {ours.get(name)!r}"
        for name in sorted(differing - listed)
    )
    assert not faults, f"{case.name}: {case.about}\n{faults}\nThe log of {server}:\n{errors}"
    needless = sorted(listed - differing)
    assert not needless, f"{case.name} does not differ in {needless}: remove it from DIFFERENCES"


def test_the_files_are_a_corpus() -> None:
    names = {case.name for case in CASES}
    assert len(CASES) >= 60
    assert set(BY_DEFAULT) <= names
    assert set(DIFFERENCES) <= names
    assert all(case.about.endswith(".") for case in CASES), "the first line says what the file stands for"


def test_the_page_has_each_difference() -> None:
    page = " ".join(PAGE.read_text().split())
    assert not [reason for names in DIFFERENCES.values() for reason in names.values() if reason not in page]


# What is there for ASGI applications, HTTP/2 and dirty workers alone: no WSGI site's file has them.
_NOT_FOR_WSGI = re.compile(r"asgi_\w+|on_dirty_\w+|dirty_\w+|http2_\w+|websocket_\w+")
# Given on the command line, or in every file's place.
_ELSEWHERE = {"config", "chdir"}


def test_every_setting_of_gunicorn_is_used() -> None:
    text = "\n".join(path.read_text() for path in FILES.rglob("*.py"))
    used = set(re.findall(r"^(?:def )?(\w+)(?:: \w+)?(?: = |\()", text, re.MULTILINE))
    names = {setting.name for setting in gunicorn.config.KNOWN_SETTINGS}
    missing = sorted(name for name in names - used - _ELSEWHERE if not _NOT_FOR_WSGI.fullmatch(name))
    assert not missing


# The objects and attributes that hooks find: part 1 of issue 16.
ATTRIBUTES = [
    "worker.app.callable",
    "worker.app.wsgi()",
    "worker.app.app_uri",
    "worker.app.cfg",
    "server.app.cfg",
    "worker.alive",
    "worker.tmp.notify()",
    "worker.notify()",
    "worker.nr",
    "worker.slot",
    "server.address",
    "server.master_pid",
    "server.pidfile",
    "server.halt",
    "server.kill_worker",
    "server.num_workers",
    "server.WORKERS",
    "server.log.error_log",
    "worker.log.access_log",
    "cfg.worker_class_str",
    "cfg.address",
    "cfg.env",
    "cfg.is_ssl",
    "cfg.uid",
    "cfg.gid",
    "cfg.settings",
    "cfg.worker_class",
    "req.headers",
    "req.path",
    "req.uri",
    "req.method",
    "worker.cfg",
    "server.cfg",
]


def test_every_attribute_of_hooks_is_used() -> None:
    text = "\n".join(path.read_text() for path in FILES.rglob("*.py"))
    assert not [name for name in ATTRIBUTES if name not in text]
