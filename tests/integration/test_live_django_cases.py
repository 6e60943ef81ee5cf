"""Django's live test cases with this server, in runs of ``manage.py test`` (issue 17, part 4)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from projects import DJANGO, python_path, write
from server import processes, wait_until

COMMON = """
import os
from urllib.error import HTTPError
from urllib.request import urlopen

from django.conf import settings
from django.db import connection
from django.test import TestCase, override_settings
from shop.models import Item
from wsgiserv.integrations.django.test import LiveServerTestCase, StaticLiveServerTestCase


def ask(case, path, data=None):
    with open("pids", "a") as file:
        file.write(f"{case.server_thread._server.pid}\\n")
    try:
        return urlopen(case.live_server_url + path, data, timeout=20).read().decode()
    except HTTPError as error:
        return error.code


class TestOrdinary(TestCase):
    def test_the_database_is_empty(self):
        self.assertEqual(Item.objects.count(), 0)
        self.assertTrue(connection.is_in_memory_db())
"""

GOOD = f"""{COMMON}
class TestLive(LiveServerTestCase):
    def test_the_server_sees_the_tests_writes(self):
        Item.objects.create(name="ann")
        self.assertEqual(ask(self, "/items"), "ann")

    def test_the_test_sees_the_servers_writes(self):
        self.assertEqual(ask(self, "/items"), "")
        ask(self, "/items", b"name=bob")
        self.assertEqual(Item.objects.get().name, "bob")

    def test_it_is_another_process(self):
        self.assertNotEqual(int(ask(self, "/").split()[1]), os.getpid())
        self.assertRegex(self.live_server_url, r"^http://localhost:[1-9]\\d+$")
        self.assertIn("localhost", settings.ALLOWED_HOSTS)


class TestStatic(StaticLiveServerTestCase):
    host = "127.0.0.1"
    server_settings = {{"worker_class": "sync"}}

    def test_static_files(self):
        self.assertEqual(ask(self, "/static/shop.css"), "body {{}}")
        Item.objects.create(name="ann")
        self.assertEqual(ask(self, "/items"), "ann")


@override_settings(MIDDLEWARE=["shop.middleware.named"])
class TestWithSettingsOfTheClass(LiveServerTestCase):
    databases = []

    def test_they_are_the_servers(self):
        self.assertEqual(urlopen(self.live_server_url + "/stream", timeout=20).headers["X-Name"], "shop")
"""
MIDDLEWARE = """
def named(get_response):
    def middleware(request):
        response = get_response(request)
        response["X-Name"] = "shop"
        return response

    return middleware
"""


def run_tests(directory: Path, *args: str, tests: str, settings: str = "") -> subprocess.CompletedProcess[str]:
    files = {**DJANGO, "shop/tests.py": tests, "shop/middleware.py": MIDDLEWARE}
    files["mysite/settings.py"] += settings
    write(directory, files)
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "manage.py", "test", *args],
        cwd=directory, env=python_path(directory), capture_output=True, text=True, timeout=58, check=False,
    )  # fmt: skip
    found = {int(line) for line in (directory / "pids").read_text().split()}
    wait_until(lambda: not [each for each in processes() if each.session in found], "the servers have ended")
    return done


@pytest.mark.parametrize("args", [[], ["--parallel", "2"]], ids=["", "parallel"])
def test_databases_in_memory(tmp_path: Path, args: list[str]) -> None:
    done = run_tests(tmp_path, *args, tests=GOOD)
    assert done.returncode == 0, done.stderr
    assert "Ran 6 tests" in done.stderr


def test_a_database_in_a_file(tmp_path: Path) -> None:
    tests = GOOD.replace("self.assertTrue(connection.is_in_memory_db())", "pass")
    done = run_tests(tmp_path, tests=tests, settings='DATABASES["default"]["TEST"] = {"NAME": "test.sqlite3"}\n')
    assert done.returncode == 0, done.stderr


BAD = f"""{COMMON}
class TestLive(LiveServerTestCase):
    def test_a_failing_view(self):
        self.assertEqual(ask(self, "/boom"), 200)

    def test_good(self):
        self.assertEqual(ask(self, "/items"), "")

    def test_its_own_fault(self):
        self.assertEqual(ask(self, "/items"), "no")


class TestNoServer(LiveServerTestCase):
    server_settings = {{"workers": "many"}}

    def test_it(self):
        pass
"""


def test_the_servers_errors_are_in_the_report(tmp_path: Path) -> None:
    done = run_tests(tmp_path, tests=BAD)
    assert done.returncode == 1
    assert "FAILED (failures=2, errors=1)" in done.stderr
    reports = dict(part.split(" ", 1) for part in done.stderr.split("FAIL: ")[1:])
    assert "500 != 200\nThe server's log since the test began:\nTraceback" in reports["test_a_failing_view"]
    assert "RuntimeError: this view fails on purpose" in reports["test_a_failing_view"]
    assert "server's log" not in reports["test_its_own_fault"]
    assert "WS1010 workers = 'many'" in done.stderr


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)", "raise KeyboardInterrupt"])
def test_the_server_ends_with_the_run(tmp_path: Path, end: str) -> None:
    case = f"class TestLive(LiveServerTestCase):\n    def test_it(self):\n        ask(self, '/')\n        {end}\n"
    tests = f"{COMMON}\n\n{case}"
    assert run_tests(tmp_path, tests=tests).returncode != 0
