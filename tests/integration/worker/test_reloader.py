"""The development reloader: what counts as a change, under both engines; the page of a broken application."""

from __future__ import annotations

import importlib
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from wsgiserv.errors import ApplicationError, ConfigError
from wsgiserv.worker import reloader as reloader_module
from wsgiserv.worker.debug_page import broken_application
from wsgiserv.worker.reloader import Reloader

DEADLINE_S = 20


class Watch:
    """A started reloader and the paths it has reported."""

    def __init__(self, engine: str, extra: Iterable[str] = (), failed: ApplicationError | None = None) -> None:
        self.changes: queue.Queue[str] = queue.Queue()
        self.reloader = Reloader(self.changes.put, list(extra), engine, 0.05)
        if failed is not None:
            self.reloader.watch_broken(failed)
        self.reloader.start()

    def next(self) -> str:
        """Return the next change; fails at the deadline."""
        return self.changes.get(timeout=DEADLINE_S)

    def until(self, path: Path) -> None:
        """Wait until ``path`` is reported."""
        while self.next() != str(path):
            pass


Start = Callable[..., Watch]


@pytest.fixture(params=["poll", "watchfiles"])
def watch(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Return start(extra_files..., failed=None), for each engine."""
    started: list[Watch] = []

    def start(*extra: object, failed: ApplicationError | None = None) -> Watch:
        started.append(Watch(request.param, map(str, extra), failed))
        return started[-1]

    yield start
    for one in started:
        one.reloader.stop()


def save(path: Path, text: str) -> None:
    """Save as editors do: a new file renamed over the old one."""
    new = path.with_name("." + path.name + ".new")
    new.write_text(text)
    new.rename(path)


class TestChanges:
    def test_written_in_place(self, tmp_path: Path, watch: Start) -> None:
        path = tmp_path / "gun.py"
        path.write_text("one")
        started = watch(path)
        path.write_text("longer")
        started.until(path)

    def test_atomic_rename(self, tmp_path: Path, watch: Start) -> None:
        path = tmp_path / "gun.py"
        path.write_text("one")
        started = watch(path)
        save(path, "longer")
        started.until(path)

    def test_an_older_file_put_in_its_place(self, tmp_path: Path, watch: Start) -> None:
        path = tmp_path / "gun.py"
        path.write_text("one")
        old = tmp_path / "old"
        old.write_text("two")
        os.utime(old, (1, 1))
        started = watch(path)
        old.rename(path)
        started.until(path)

    def test_deleted_and_made_again(self, tmp_path: Path, watch: Start) -> None:
        path = tmp_path / "gun.py"
        path.write_text("one")
        started = watch(path)
        path.unlink()
        started.until(path)
        path.write_text("one again")
        started.until(path)

    def test_a_file_that_is_not_there_yet(self, tmp_path: Path, watch: Start) -> None:
        path = tmp_path / "later.py"
        started = watch(path)
        path.write_text("now")
        started.until(path)

    def test_later_changes_are_told_too(self, tmp_path: Path, watch: Start) -> None:
        path = tmp_path / "gun.py"
        path.write_text("")
        started = watch(path)
        for count in range(1, 4):
            path.write_text("x" * count)
            started.until(path)

    def test_target_of_a_link(self, tmp_path: Path, watch: Start) -> None:
        target = tmp_path / "elsewhere" / "real.py"
        target.parent.mkdir()
        target.write_text("one")
        link = tmp_path / "links" / "gun.py"
        link.parent.mkdir()
        link.symlink_to(target)
        started = watch(link)
        target.write_text("longer")
        started.until(link)

    def test_pattern_with_new_file_in_new_directory(self, tmp_path: Path, watch: Start) -> None:
        (tmp_path / "templates").mkdir()
        started = watch(tmp_path / "templates" / "**" / "*.html")
        page = tmp_path / "templates" / "new" / "page.html"
        page.parent.mkdir()
        page.write_text("hello")
        started.until(page)

    def test_directory(self, tmp_path: Path, watch: Start) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        path = tmp_path / "a" / "b" / "text.txt"
        path.write_text("one")
        started = watch(tmp_path / "a")
        path.write_text("longer")
        started.until(path)
        new = tmp_path / "a" / "new.txt"
        new.write_text("")
        started.until(new)


class TestModules:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        monkeypatch.syspath_prepend(tmp_path)
        path = tmp_path / "watched_module.py"
        path.write_text("value = 1\n")
        yield path
        sys.modules.pop("watched_module", None)

    def test_loaded_before(self, module: Path, watch: Start) -> None:
        importlib.import_module("watched_module")
        started = watch()
        save(module, "value = 22\n")
        started.until(module)

    def test_loaded_later(self, module: Path, tmp_path: Path, watch: Start) -> None:
        other = tmp_path / "other"
        other.write_text("")
        started = watch(other)
        importlib.import_module("watched_module")
        # two rounds over another file, and the new module has been seen in between
        for text in ("1", "22"):
            other.write_text(text)
            assert started.next() == str(other)  # the import itself is no change
        save(module, "value = 22\n")
        started.until(module)

    def test_odd_objects_among_the_modules(self, tmp_path: Path, watch: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        class Lazy:
            def __getattr__(self, name: str) -> Any:
                raise AssertionError(f"a lazy module was asked for {name}")

        monkeypatch.setitem(sys.modules, "lazy_one", Lazy())  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "nothing_one", None)  # type: ignore[arg-type]
        path = tmp_path / "gun.py"
        started = watch(path)
        path.write_text("x")
        started.until(path)


class TestFailedImport:
    def test_the_broken_file_itself(self, tmp_path: Path, watch: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        elsewhere = tmp_path / "lib" / "broken.py"
        elsewhere.parent.mkdir()
        elsewhere.write_text("def (\n")
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        error = ApplicationError(
            "m", f'  File "{elsewhere}", line 1\n    def (\n        ^\nSyntaxError: invalid syntax\n'
        )
        started = watch(failed=error)
        save(elsewhere, "fixed = True\n")
        started.until(elsewhere)

    @pytest.mark.parametrize("name", ["hello.py", "package/inner/views.py"])
    def test_a_module_that_was_missing_appears(
        self, tmp_path: Path, watch: Start, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        started = watch(failed=ApplicationError("There is no module 'hello'."))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, "app = 1\n")
        started.until(path)

    def test_environments_are_not_searched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("venv/pyvenv.cfg", "venv/lib/x.py", ".git/y.py", "node_modules/z.py", "src/mine.py"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("")
        found = list(reloader_module._below(str(tmp_path), ".py"))
        assert found == [str(tmp_path / "src" / "mine.py")]


class TestEngines:
    def test_watchfiles_is_asked_for_and_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install wsgiserv\[reload\]"):
            Reloader(print, [], "watchfiles")
        Reloader(print, [], "auto")
        Reloader(print, [], "poll")

    def test_watchfiles_that_fails_falls_back_to_polling(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise OSError("inotify watch limit reached")

        monkeypatch.setattr("watchfiles.watch", fail)
        path = tmp_path / "gun.py"
        path.write_text("one")
        watch = Watch("watchfiles", [str(path)])
        try:
            path.write_text("longer")
            watch.until(path)
        finally:
            watch.reloader.stop()

    @pytest.mark.parametrize("engine", ["poll", "watchfiles"])
    def test_greenlets_go_on_while_it_waits(self, tmp_path: Path, engine: str) -> None:
        code = (
            "import gevent.monkey; gevent.monkey.patch_all()\n"
            "import gevent, os, select, sys\n"
            "from wsgiserv.worker.reloader import Reloader\n"
            "path = os.path.abspath('gun.py'); open(path, 'w').close()\n"
            "reader, writer = os.pipe()\n"
            f"Reloader(lambda p: os.write(writer, p.encode()), [path], {engine!r}, 0.3).start()\n"
            "turns = 0\n"
            "while turns < 20: gevent.sleep(0.001); turns += 1\n"
            "open(path, 'w').write('changed')\n"
            "assert select.select([reader], [], [], 20)[0]\n"
            "print(os.read(reader, 4096).decode())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=40,
            check=True,
        )
        assert done.stdout.strip() == str(tmp_path / "gun.py")

    def test_stop_twice(self) -> None:
        watch = Watch("poll")
        watch.reloader.stop()
        watch.reloader.stop()


class TestBrokenApplication:
    def get(self, error: ApplicationError, **extra: str) -> tuple[str, dict[str, str], str]:
        answer: dict[str, Any] = {}

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            answer.update(status=status, headers=dict(headers))
            return lambda data: None

        environ: dict[str, Any] = {"QUERY_STRING": ""}
        setup_testing_defaults(environ)
        environ.update(extra)
        result: Any = validator(broken_application(error))(environ, start_response)
        body = b"".join(result)
        result.close()
        return answer["status"], answer["headers"], body.decode()

    ERROR = ApplicationError("No <b>name</b> & such", 'Traceback:\n  File "<script>alert(1)</script>"\n\udcff')

    def test_html_for_browsers(self) -> None:
        status, headers, body = self.get(self.ERROR, HTTP_ACCEPT="text/html,application/xhtml+xml,*/*;q=0.8")
        assert status.startswith("500 ")
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["Content-Length"] == str(len(body.encode()))
        assert headers["Cache-Control"] == "no-store"
        assert "No &lt;b&gt;name&lt;/b&gt; &amp; such" in body
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body
        assert "<script" not in body
        assert "script-src" not in headers["Content-Security-Policy"]

    @pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
    def test_plain_text_for_the_others(self, accept: str) -> None:
        status, headers, body = self.get(self.ERROR, HTTP_ACCEPT=accept)
        assert status.startswith("500 ")
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert "No <b>name</b> & such" in body
        assert "Traceback:" in body

    def test_head(self) -> None:
        status, headers, body = self.get(self.ERROR, REQUEST_METHOD="HEAD")
        assert status.startswith("500 ")
        assert int(headers["Content-Length"]) > 0
        assert body == ""

    def test_without_a_traceback(self) -> None:
        assert "<pre>" not in self.get(ApplicationError("only this"), HTTP_ACCEPT="text/html")[2]


def test_a_file_of_the_same_tick_is_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's time stamps are those of its last tick: a file written a moment after may seem to be older."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "missing.py").touch()
    made_at_ns = (tmp_path / "missing.py").stat().st_ctime_ns + 8_000_000
    monkeypatch.setattr("wsgiserv.worker.reloader.time_ns", lambda: made_at_ns)
    reloader = Reloader(print, [], "poll", 0.05)
    reloader.watch_broken(ApplicationError("an import has failed"))
    assert reloader._look() == str(tmp_path / "missing.py")
    assert reloader._look() is None
