"""The search for an application's checks of the server's name, and the names themselves."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from types import ModuleType

import pytest
from cases import check_each

from wsgiserv import __version__
from wsgiserv.app.appearance import identify
from wsgiserv.app.server_checks import Found, find_check
from wsgiserv.config.loader import load
from wsgiserv.config.settings import Settings
from wsgiserv.master.advice import advice_about

# As found in public projects, in the manner of.
CHECKS = [
    'IS_GUNICORN = "gunicorn" in os.environ.get("SERVER_SOFTWARE", "")',
    'if os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn"):',
    "is_gunicorn = 'gunicorn' in sys.argv[0]",
    'if sys.argv[0].endswith("/gunicorn"):',
    'if os.path.basename(sys.argv[0]) == "gunicorn":',
    "if 'gunicorn' in sys.modules:",
    'under = sys.modules.get("gunicorn") is not None',
    'if any("gunicorn" in each for each in argv):',
    'running = (\n    "gunicorn"\n    in os.environ.get(\n        "SERVER_SOFTWARE",\n        "",\n    )\n)',
]
NO_CHECKS = [
    "# run it with gunicorn: see sys.argv",
    "    # 'gunicorn' in sys.modules would tell",
    'log = logging.getLogger("gunicorn.error")',
    "import gunicorn\nargs = sys.argv[1:]",
    "name = os.environ['SERVER_SOFTWARE']",
    'subprocess.run(["gunicorn", "shop:app"])' + "\n" * 200 + "sys.argv",
]


def test_checks_are_found(tmp_path: Path) -> None:
    def check(text: str) -> None:
        (tmp_path / "shop.py").write_text(f"import os, sys\n{text}\n")
        found = find_check("shop", [str(tmp_path)])
        assert found is not None
        assert found.path == str(tmp_path / "shop.py")
        assert "gunicorn" in found.text

    check_each(((text, text) for text in CHECKS), check)


def test_other_uses_of_the_name_are_not(tmp_path: Path) -> None:
    def check(text: str) -> None:
        (tmp_path / "shop.py").write_text(f"{text}\n")
        assert find_check("shop", [str(tmp_path)]) is None

    check_each(((text, text) for text in NO_CHECKS), check)


def project(directory: Path) -> Path:
    """Make a package that would fail to import, with a check in a module of a subpackage."""
    inner = directory / "shop" / "core"
    inner.mkdir(parents=True)
    (directory / "shop" / "wsgi.py").write_text("raise SystemExit('imported')\n")
    (inner / "logs.py").write_text(f"\n\n{CHECKS[0]}\n")
    return inner / "logs.py"


def test_a_package_is_searched_and_not_imported(tmp_path: Path) -> None:
    path = project(tmp_path)
    assert find_check("shop.wsgi", [str(tmp_path / "other"), str(tmp_path)]) == Found(str(path), 3, CHECKS[0])
    assert "shop" not in sys.modules


def test_only_the_applications_own_sources_are_searched(tmp_path: Path) -> None:
    project(tmp_path / "lib" / "site-packages")
    assert find_check("shop.wsgi", [str(tmp_path / "lib" / "site-packages")]) is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.py").write_text(CHECKS[0])
    (tmp_path / "app.py").write_text("")
    assert find_check("app", [str(tmp_path)]) is None
    (tmp_path / "settings.py").write_text(CHECKS[0])
    assert find_check("app", [str(tmp_path)]) == Found(str(tmp_path / "settings.py"), 1, CHECKS[0])


def test_the_search_ends_in_time_and_never_waits(tmp_path: Path) -> None:
    project(tmp_path)
    assert find_check("shop", [str(tmp_path)], monotonic() - 1) is None
    os.mkfifo(tmp_path / "shop" / "a.py")
    (tmp_path / "shop" / "b.py").symlink_to("nowhere")
    (tmp_path / "shop" / "c.py").mkdir()
    (tmp_path / "shop" / "again").symlink_to(tmp_path)
    assert find_check("shop", [str(tmp_path)]) is not None


def test_the_advice_ends_with_a_choice(tmp_path: Path) -> None:
    project(tmp_path)

    def lines(*argv: str) -> list[str]:
        return [line.partition(" ")[0] for line in advice_about(load([*argv, "shop.wsgi"], {}, str(tmp_path)))]

    assert lines() == ["WS1090"]
    assert lines("--appear-as", "off") == lines("--appear-as", "gunicorn") == []
    assert lines("-e", "SERVER_SOFTWARE=gunicorn/20") == []
    assert lines("--preload") == ["WS1090", "WS1091"]
    assert lines("--preload", "--preload-in", "zygote") == lines("--preload", "--preload-in", "master") == ["WS1090"]


# ---- the names -------------------------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give this process a program's name of its own, and no gunicorn; put all back."""
    monkeypatch.setattr(sys, "argv", ["/srv/venv/bin/wsgiserv", "shop:app"])
    gunicorns = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "gunicorn"}
    for name in gunicorns:
        del sys.modules[name]
    yield
    identify(Settings())
    for name in [name for name in sys.modules if name.partition(".")[0] == "gunicorn"]:
        del sys.modules[name]
    sys.modules.update(gunicorns)


def test_by_default_the_server_has_its_own_name(names: None) -> None:
    assert identify(Settings(raw_env=("A=1",))) == (f"SERVER_SOFTWARE=wsgiserv/{__version__}", "A=1")
    assert sys.argv[0] == "/srv/venv/bin/wsgiserv"
    assert "gunicorn" not in sys.modules


def test_it_appears_as_the_installed_gunicorn_and_takes_that_back(names: None) -> None:
    for _ in range(2):
        [variable] = identify(Settings(appear_as="gunicorn"))
        assert sys.argv == ["/srv/venv/bin/gunicorn", "shop:app"]
        assert variable == f"SERVER_SOFTWARE=gunicorn/{sys.modules['gunicorn'].__version__}"
    assert importlib.util.find_spec("gunicorn.config") is not None
    for _ in range(2):
        identify(Settings())
        assert sys.argv == ["/srv/venv/bin/wsgiserv", "shop:app"]
        assert "gunicorn" not in sys.modules


def test_a_gunicorn_of_the_configuration_file_stays(names: None) -> None:
    sys.modules["gunicorn"] = own = ModuleType("gunicorn")
    identify(Settings(appear_as="gunicorn"))
    identify(Settings())
    assert sys.modules["gunicorn"] is own


def test_without_an_installed_one_there_is_a_stand_in(
    names: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gunicorn").mkdir()  # a directory of the project, with gunicorn.conf.py in it
    (tmp_path / "gunicorn" / "gunicorn.conf.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    [variable] = identify(Settings(appear_as="gunicorn"))
    module = sys.modules["gunicorn"]
    assert module.SERVER_SOFTWARE == variable.removeprefix("SERVER_SOFTWARE=") == f"gunicorn/{module.__version__}"
    assert importlib.util.find_spec("gunicorn") is module.__spec__
    with pytest.raises(ModuleNotFoundError):
        import gunicorn.app.base  # noqa: F401


def test_python_m_has_the_path_of_a_command(names: None) -> None:
    sys.argv[0] = "/srv/lib/wsgiserv/__main__.py"
    identify(Settings(appear_as="gunicorn"))
    assert sys.argv[0] == os.path.join(os.path.dirname(sys.executable), "gunicorn")
