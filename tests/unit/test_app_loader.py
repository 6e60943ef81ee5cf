"""Loading the application: every form of the string, and what a person reads when it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsgiserv.app.loader import load_application, missing_in, prepare_path
from wsgiserv.errors import ApplicationError, ConfigError

APP = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'hello']\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return write(name, text); the files are in an importable working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    prepare_path(".", None)

    def write_file(name: str, text: str = APP) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    yield write_file
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def failure(spec: str) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        load_application(spec)
    return caught.value


class TestForms:
    def test_module_and_name(self, write: Write) -> None:
        write("mod_a.py")
        assert load_application("mod_a:app").__name__ == "app"

    def test_package_and_attribute(self, write: Write) -> None:
        write("pkg_a/__init__.py", "")
        write("pkg_a/web.py", APP + "class Site:\n    inner = app\nsite = Site()\nSite.inner = staticmethod(app)\n")
        assert load_application("pkg_a.web:site.inner").__name__ == "app"

    def test_factory(self, write: Write) -> None:
        write("mod_f.py", APP + "def make():\n    return app\n")
        assert load_application("mod_f:make()").__name__ == "app"

    def test_factory_with_literals(self, write: Write) -> None:
        write("mod_g.py", APP + "got = []\ndef make(*args, **kw):\n    got.append((args, kw))\n    return app\n")
        load_application("mod_g:make('x:y', -1, debug=True, names=['a'], extra={'k': None})")
        assert sys.modules["mod_g"].got == [(("x:y", -1), {"debug": True, "names": ["a"], "extra": {"k": None}})]

    def test_factory_that_is_a_method(self, write: Write) -> None:
        write("mod_m.py", APP + "class Maker:\n    def make(self):\n        return app\nmaker = Maker()\n")
        assert load_application("mod_m:maker.make()").__name__ == "app"

    def test_module_alone_prefers_application(self, write: Write) -> None:
        write("mod_b.py", APP + "def application(environ, start_response):\n    return []\n")
        assert load_application("mod_b").__name__ == "application"

    def test_module_alone_takes_app(self, write: Write) -> None:
        write("mod_c.py")
        assert load_application("mod_c").__name__ == "app"

    @pytest.mark.parametrize(
        "text",
        [
            "class app:\n    def __init__(self, environ, start_response): pass\n",
            "class App:\n    def __call__(self, e, s): return []\napp = App()\n",
            "import functools\napp = functools.partial(lambda x, e, s: [], 1)\n",
            "def app(*args): return []\n",
        ],
    )
    def test_any_callable(self, write: Write, text: str) -> None:
        write("mod_callable.py", text)
        assert callable(load_application("mod_callable:app"))


class TestStrings:
    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            (":app", "names no module"),
            ("mod:app[0]", "neither a name nor the call"),
            ("mod:", "is not a name in a module"),
            ("mod:a b", "is not a name in a module"),
            ("mod:1", "neither a name"),
            ("mod:make(1)(2)", "neither a name"),
            ("mod:make(open('x'))", "must be literals"),
            ("mod:make(debug)", "must be literals"),
            ("mod:make(**{'a': 1})", "must be literals"),
        ],
    )
    def test_refused(self, write: Write, spec: str, says: str) -> None:
        error = failure(spec)
        assert says in str(error)
        assert repr(spec) in str(error) or spec.partition(":")[0] in str(error)
        assert error.traceback == ""

    def test_arguments_are_never_evaluated(self, write: Write, tmp_path: Path) -> None:
        write("mod_e.py", APP + "def make(x): return app\n")
        failure("mod_e:make(open('made', 'w'))")
        assert not (tmp_path / "made").exists()

    def test_a_file_is_answered_with_its_module(self, write: Write) -> None:
        write("hello_f.py")
        assert "wsgiserv hello_f:app" in str(failure("hello_f.py"))
        assert "wsgiserv hello_f:site" in str(failure("hello_f.py:site"))
        assert "wsgiserv hello_f:app" in str(failure("./hello_f.py"))

    def test_a_path_is_answered_with_chdir_and_package(self, write: Write) -> None:
        write("dir/hello_d.py")
        message = str(failure("dir/hello_d.py"))
        assert "wsgiserv --chdir dir hello_d:app" in message
        assert "wsgiserv dir.hello_d:app" in message

    def test_a_path_that_does_not_exist(self, write: Write, tmp_path: Path) -> None:
        message = str(failure("dir/nothing.py"))
        assert "no such file" in message
        assert str(tmp_path) in message


class TestModuleNotFound:
    def test_says_where_it_searched_and_near_names(self, write: Write, tmp_path: Path) -> None:
        write("hello_near.py")
        error = failure("helo_near:app")
        assert "no module 'helo_near'" in str(error)
        assert f"{tmp_path} (the working directory)" in str(error)
        assert "wsgiserv hello_near:app" in str(error)
        assert error.traceback == ""
        assert error.exit_status == 4

    def test_names_the_modules_that_are_here(self, write: Write) -> None:
        write("zebra.py")
        assert "zebra" in str(failure("qqqqqqqq:app"))

    def test_an_empty_directory(self, write: Write) -> None:
        assert "--chdir" in str(failure("qqqqqqqq:app"))

    def test_found_one_directory_below(self, write: Write) -> None:
        write("src/deep_mod.py")
        assert "wsgiserv --chdir src deep_mod:app" in str(failure("deep_mod:app"))

    def test_submodule(self, write: Write) -> None:
        write("pkg_s/__init__.py", "")
        write("pkg_s/website.py")
        assert "wsgiserv pkg_s.website:app" in str(failure("pkg_s.websit:app"))

    def test_dot_for_colon(self, write: Write) -> None:
        write("mod_dot.py")
        assert "wsgiserv mod_dot:app" in str(failure("mod_dot.app"))

    def test_a_dependency_is_told_apart(self, write: Write) -> None:
        path = write("mod_dep.py", "import no_such_thing_installed\n")
        error = failure("mod_dep:app")
        assert "'mod_dep'" in str(error)
        assert "imports 'no_such_thing_installed'" in str(error)
        assert "There is no module 'mod_dep'" not in str(error)
        assert f'File "{path}", line 1' in error.traceback

    def test_a_module_that_imports_its_own_missing_submodule(self, write: Write) -> None:
        write("pkg_t/__init__.py", "import pkg_t.gone\n")
        error = failure("pkg_t.gone:app")
        assert "which was not found" in str(error)
        assert "pkg_t.gone" in error.traceback


class TestFailingImport:
    def test_the_traceback_is_the_users_alone(self, write: Write) -> None:
        inner = write("inner_z.py", "def f():\n    return 1 / 0\n")
        outer = write("outer_z.py", "import inner_z\ninner_z.f()\n")
        error = failure("outer_z:app")
        assert "ZeroDivisionError: division by zero" in str(error)
        assert error.traceback.startswith("Traceback (most recent call last):\n")
        files = [line.split('"')[1] for line in error.traceback.splitlines() if line.strip().startswith("File ")]
        assert files == [str(outer), str(inner)]
        assert "app/loader.py" not in error.traceback
        assert "importlib" not in error.traceback

    def test_chained_exceptions_are_cleaned_too(self, write: Write) -> None:
        write("chain_low.py", "1 / 0\n")
        write(
            "chain_top.py",
            "try:\n    import chain_low\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e\n",
        )
        text = failure("chain_top:app").traceback
        assert "direct cause" in text
        assert "importlib" not in text

    def test_syntax_error_keeps_its_caret(self, write: Write) -> None:
        path = write("mod_syntax.py", "x = 1\ndef broken(:\n    pass\n")
        error = failure("mod_syntax:app")
        assert "syntax error" in str(error)
        assert f"{path}, line 2" in str(error)
        assert f'File "{path}", line 2' in error.traceback
        assert "^" in error.traceback
        assert "SyntaxError" in error.traceback

    @pytest.mark.parametrize(
        ("statement", "says"),
        [
            ("import sys; sys.exit(3)", "sys.exit(3)"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("raise BaseException('odd')", "odd"),
            ("raise GeneratorExit", "GeneratorExit"),
            ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E"),
            ("raise ExceptionGroup('several', [ValueError(1)])", "several"),
            ("def f(): f()\nf()", "RecursionError"),
        ],
    )
    def test_whatever_is_raised(self, write: Write, statement: str, says: str) -> None:
        write("mod_raise.py", statement + "\n")
        error = failure("mod_raise:app")
        assert says in str(error)
        assert "mod_raise.py" in error.traceback

    def test_a_mended_file_loads_in_the_same_process(self, write: Write) -> None:
        write("mod_mend.py", "1 / 0\n")
        failure("mod_mend:app")
        write("mod_mend.py", APP + "# longer than before, so that no cached bytecode fits\n")
        assert load_application("mod_mend:app")


class TestObject:
    def test_missing_name_offers_near_names(self, write: Write) -> None:
        path = write("mod_n.py", APP.replace("app(", "appplication("))
        error = failure("mod_n:application")
        assert "no 'application'" in str(error)
        assert str(path) in str(error)
        assert "wsgiserv mod_n:appplication" in str(error)

    def test_missing_name_offers_factories(self, write: Write) -> None:
        write("mod_fac.py", "def create_app():\n    pass\n")
        assert "wsgiserv 'mod_fac:create_app()'" in str(failure("mod_fac:app"))
        assert "wsgiserv 'mod_fac:create_app()'" in str(failure("mod_fac"))

    def test_missing_name_offers_an_application_of_another_name(self, write: Write) -> None:
        write("mod_inst.py", "class Site:\n    def __call__(self, e, s): return []\nserver = Site()\n")
        assert "wsgiserv mod_inst:server" in str(failure("mod_inst:app"))

    def test_a_file_hidden_by_a_module_that_was_imported_before(self, write: Write) -> None:
        path = write("json.py")
        message = str(failure("json:app"))
        assert f"{path} is hidden" in message

    def test_missing_attribute_of_an_object(self, write: Write) -> None:
        write("mod_at.py", "class S:\n    def wsgi(self, e, s): return []\nsite = S()\n")
        message = str(failure("mod_at:site.wsgj"))
        assert "'wsgj'" in message
        assert "mod_at.site" in message

    @pytest.mark.parametrize("value", ["None", "3", "'text'", "[]"])
    def test_not_callable(self, write: Write, value: str) -> None:
        write("mod_nc.py", f"app = {value}\n")
        message = str(failure("mod_nc:app"))
        assert "cannot be called" in message
        assert "start_response" in message

    def test_a_module_is_not_an_application(self, write: Write) -> None:
        write("pkg_m/__init__.py", "from pkg_m import web\n")
        write("pkg_m/web.py", "class S:\n    def __call__(self, e, s): return []\nsite = S()\n")
        assert "pkg_m.web:site" in str(failure("pkg_m:web"))

    def test_factory_without_its_call(self, write: Write) -> None:
        write("mod_fc.py", "def create_app(name='x'):\n    pass\n")
        assert "wsgiserv 'mod_fc:create_app()'" in str(failure("mod_fc:create_app"))

    def test_factory_that_returns_nothing(self, write: Write) -> None:
        write("mod_fn.py", "def make():\n    pass\n")
        message = str(failure("mod_fn:make()"))
        assert "NoneType" in message
        assert "factory returned" in message

    def test_factory_that_raises(self, write: Write) -> None:
        path = write("mod_fr.py", "def make():\n    raise LookupError('no database')\n")
        error = failure("mod_fr:make()")
        assert "LookupError: no database" in str(error)
        assert "make()" in str(error)
        assert f'File "{path}", line 2' in error.traceback
        assert "app/loader.py" not in error.traceback

    def test_factory_that_does_not_take_the_arguments(self, write: Write) -> None:
        write("mod_fa.py", "def make():\n    pass\n")
        assert "make() takes 0 positional arguments" in str(failure("mod_fa:make(1)"))

    def test_call_of_an_application_object(self, write: Write) -> None:
        write("mod_co.py", "app = 5\n")
        assert "wsgiserv mod_co:app" in str(failure("mod_co:app()"))

    @pytest.mark.parametrize(
        "text",
        [
            "async def app(scope, receive, send): pass\n",
            "class A:\n    async def __call__(self, scope, receive, send): pass\napp = A()\n",
        ],
    )
    def test_asgi_is_recognised(self, write: Write, text: str) -> None:
        write("mod_asgi.py", text)
        assert "ASGI" in str(failure("mod_asgi:app"))

    def test_async_factory(self, write: Write) -> None:
        write("mod_af.py", "async def make(): pass\n")
        assert "async function" in str(failure("mod_af:make()"))


class TestPath:
    def test_changes_directory_and_is_importable_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir("/")
        monkeypatch.setattr(sys, "path", ["/elsewhere"])
        prepare_path(str(tmp_path), None)
        assert sys.path == [str(tmp_path), "/elsewhere"]
        assert Path.cwd() == tmp_path

    def test_twice_adds_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir("/")
        monkeypatch.setattr(sys, "path", [])
        prepare_path(str(tmp_path), "lib")
        prepare_path(".", "lib")
        assert sys.path == [str(tmp_path / "lib"), str(tmp_path)]

    def test_pythonpath_in_gunicorns_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir("/")
        monkeypatch.setattr(sys, "path", [])
        prepare_path(str(tmp_path), "one,/two")
        assert sys.path == ["/two", str(tmp_path / "one"), str(tmp_path)]

    def test_bad_chdir(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="chdir = 'file'"):
            prepare_path("file", None)

    def test_a_directory_that_was_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It existed when the server started: the process stays where it is."""
        release = tmp_path / "release"
        release.mkdir()
        monkeypatch.chdir(release)
        monkeypatch.setattr(sys, "path", [])
        release.rmdir()
        assert not prepare_path(str(release), "lib")
        assert sys.path == [f"{release} (deleted)/lib", str(release)]


class TestNamesThatNoImportStatementTakes:
    @pytest.mark.parametrize(
        ("path", "spec"),
        [
            ("my-app.py", "my-app:app"),
            ("my-site/wsgi.py", "my-site.wsgi:app"),
            ("2024_site.py", "2024_site:app"),
            ("1/web-app.py", "1.web-app"),
            ("class.py", "class:app"),
        ],
    )
    def test_they_load(self, write: Write, path: str, spec: str) -> None:
        write(path)
        assert load_application(spec)({}, lambda *_: None) == [b"hello"]

    def test_one_that_is_missing_is_looked_for(self, write: Write) -> None:
        write("my-app.py")
        assert "Did you mean wsgiserv my-app:app?" in str(failure("my-ap:app"))

    @pytest.mark.parametrize("spec", ["a..b:app", ".a:app", "a.:app", " a:app", "a\n:app"])
    def test_what_importlib_does_not_take(self, write: Write, spec: str) -> None:
        assert "cannot be the name of a Python module" in str(failure(spec))


class TestMissingSubmodules:
    """Of a package that is there: to install it would not help."""

    @pytest.mark.parametrize(
        "statement", ["import own_pkg.modles", "from own_pkg.modles import User", "import own_pkg.modles.deep"]
    )
    def test_in_ones_own_package(self, write: Write, tmp_path: Path, statement: str) -> None:
        write("own_pkg/__init__.py", "")
        write("own_pkg/models.py", "")
        write("web_a.py", f"{statement}\n")
        error = failure("web_a:app")
        assert f"There is no 'modles' in the package 'own_pkg' ({tmp_path / 'own_pkg'})" in str(error)
        assert "Did you mean own_pkg.models?" in str(error)
        assert "pip install" not in str(error)
        assert statement in error.traceback

    def test_in_the_package_that_is_being_imported(self, write: Write) -> None:
        """When it fails the package itself is gone from sys.modules."""
        write("own_b/__init__.py", "from .views import app\n")
        write("own_b/forms.py", "")
        error = failure("own_b:app")
        assert "There is no 'views' in the package 'own_b'" in str(error)
        assert "Modules in it: forms." in str(error)
        assert "pip install" not in str(error)

    def test_in_ones_own_module(self, write: Write, tmp_path: Path) -> None:
        write("own_c.py", "")
        write("web_c.py", "import own_c.part\n")
        error = str(failure("web_c:app"))
        assert f"'own_c' ({tmp_path / 'own_c.py'}) is a module, not a package" in error
        assert "pip install" not in error

    def test_in_an_installed_package(self, write: Write) -> None:
        write("web_d.py", "import pytest.no_such_part\n")
        error = str(failure("web_d:app"))
        assert "There is no 'no_such_part' in the package 'pytest'" in error
        assert "Another version of that package may have it" in error

    def test_near_one_of_ones_own(self, write: Write) -> None:
        write("own_helpers.py", "")
        write("web_e.py", "import own_helper\n")
        assert "Did you mean your own 'own_helpers'?" in str(failure("web_e:app"))

    def test_in_a_directory_below(self, write: Write) -> None:
        write("src/own_lib.py", "")
        write("web_f.py", "import own_lib\n")
        assert "--pythonpath src" in str(failure("web_f:app"))


class TestOnesOwnFileInPlaceOfAPackage:
    """Called as the package that it uses."""

    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("flask", "bottle", "colorsys")]:
            monkeypatch.delitem(sys.modules, name)

    @pytest.mark.parametrize(
        ("files", "spec"),
        [
            ({"flask.py": "from flask import Flask\napp = Flask(__name__)\n"}, "flask:app"),
            ({"flask.py": "import flask\napp = flask.Flask(__name__)\n"}, "flask:app"),
            ({"flask.py": "", "web_g.py": "from flask import Flask\n"}, "web_g:app"),
            ({"flask.py": "", "web_g.py": "import flask\napp = flask.Flask('a')\n"}, "web_g:app"),
            ({"flask.py": "", "web_g.py": "import flask.views\n"}, "web_g:app"),
            ({"flask/__init__.py": "", "web_g.py": "from flask import Flask\n"}, "web_g:app"),
            ({"flask/__init__.py": "", "web_g.py": "import flask.views\n"}, "web_g:app"),
            (
                {"flask.py": "", "web_g.py": "def make():\n    import flask\n    return flask.Flask('a')\n"},
                "web_g:make()",
            ),
            (
                {"flask.py": "", "web_g.py": "try:\n    from flask import Flask\nexcept ImportError:\n    1 / 0\n"},
                "web_g:app",
            ),
        ],
    )
    def test_a_package(self, write: Write, tmp_path: Path, files: dict[str, str], spec: str) -> None:
        for name, text in files.items():
            write(name, text)
        error = str(failure(spec))
        assert f"Your own {tmp_path / next(iter(files))} is imported in place of the package 'flask' (" in error
        assert "rename yours" in error
        assert "pip install" not in error

    def test_the_standard_library(self, write: Write, tmp_path: Path) -> None:
        write("colorsys.py", "")
        write("web_h.py", "import colorsys\ncolorsys.rgb_to_hsv(1, 1, 1)\n")
        error = str(failure("web_h:app"))
        assert f"Your own {tmp_path / 'colorsys.py'} is imported in place of" in error

    def test_an_ordinary_mistake_is_nothing_of_this(self, write: Write) -> None:
        write("own_i.py", "")
        write("web_i.py", "from own_i import nothing\n")
        write("web_j.py", "import json\njson.lods('1')\n")
        for spec in ("web_i:app", "web_j:app"):
            assert "in place of" not in str(failure(spec))


class TestOddObjects:
    """Objects are looked at by their type: their attributes may raise anything."""

    @pytest.mark.parametrize("name", ["odd", "exits", "interrupts", "Instance", "make()"])
    def test_they_are_loaded(self, name: str) -> None:
        assert callable(load_application(f"oddapps:{name}"))

    def test_what_asking_for_an_attribute_raises_is_told_with_its_traceback(self) -> None:
        error = failure("oddapps:nested.app")
        assert "Unbound: working outside of application context" in str(error)
        assert "oddapps.py" in error.traceback

    @pytest.mark.parametrize("raised", ["SystemExit(3)", "KeyboardInterrupt", "OddError"])
    def test_whatever_it_is(self, write: Write, raised: str) -> None:
        write(
            "mod_ow.py",
            f"from oddapps import OddError\nclass A:\n    @property\n    def app(self): raise {raised}\na = A()\n",
        )
        error = failure("mod_ow:a.app")
        assert "mod_ow.py" in error.traceback
        assert raised.partition("(")[0] in error.traceback

    def test_they_may_stand_beside_a_name_that_is_missing(self, write: Write) -> None:
        write("mod_ob.py", "from oddapps import odd, exits\ndef serve(e, s): pass\n")
        assert "There is no 'ap' in the module 'mod_ob'" in str(failure("mod_ob:ap"))
        assert "neither" in str(failure("mod_ob"))

    @pytest.mark.parametrize(
        "text",
        [
            "class A:\n    @staticmethod\n    async def __call__(scope, receive, send): pass\napp = A()\n",
            "class A:\n    async def m(self, s, r): pass\nimport functools as f\napp = f.partial(f.partial(A().m))\n",
        ],
    )
    def test_async_ones_are_still_found(self, write: Write, text: str) -> None:
        write("mod_oa.py", text)
        assert "ASGI" in str(failure("mod_oa:app"))

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect.markcoroutinefunction() is of Python 3.12")
    def test_so_are_marked_ones(self, write: Write) -> None:
        write("mod_om.py", "import inspect\n@inspect.markcoroutinefunction\ndef app(s, r, x): pass\n")
        assert "ASGI" in str(failure("mod_om:app"))


def test_what_is_missing_in_pythonpath(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "part.zip").touch()
    assert missing_in(str(tmp_path), f"lib,none,lib/part.zip,{tmp_path},/nowhere,") == ["none", "/nowhere"]
    assert missing_in(str(tmp_path), None) == []
