"""Projects of Django and Flask for the commands that serve them, and what runs these commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rawclient import RawClient
from server import Server, Start, environment, wait_until

DJANGO = {
    "manage.py": """
import os, sys
from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
os.environ["SET_BY_MANAGE"] = "yes"

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
""",
    "mysite/__init__.py": "",
    "mysite/settings.py": """
import os

DEBUG = os.environ.get("SITE_DEBUG", "1") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "test"]
SECRET_KEY = "for tests"
ROOT_URLCONF = "mysite.urls"
USE_TZ = True
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.staticfiles", "wsgiserv.integrations.django", "shop"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.sqlite3"}}
""",
    "mysite/urls.py": """
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from shop import views

urlpatterns = [
    path("", views.index),
    path("items", csrf_exempt(views.items)),
    path("boom", views.boom),
    path("stream", views.stream),
]
""",
    "shop/__init__.py": "",
    "shop/models.py": """
from django.db import models


class Item(models.Model):
    name = models.CharField(max_length=50)
""",
    "shop/migrations/__init__.py": "",
    "shop/migrations/0001_initial.py": """
from django.db import migrations, models


class Migration(migrations.Migration):
    operations = [
        migrations.CreateModel("Item", [
            ("id", models.BigAutoField(primary_key=True)), ("name", models.CharField(max_length=50)),
        ]),
    ]
""",
    "shop/views.py": """
import os, sys
from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from shop.models import Item


def index(request):
    words = {"pid": os.getpid(), "manage": os.environ.get("SET_BY_MANAGE"), "main": sys.modules["__main__"].__file__}
    return render(request, "index.html", {"words": " ".join(map(str, words.values()))})


def items(request):
    if request.method == "POST":
        Item.objects.create(name=request.POST["name"])
    return HttpResponse(",".join(Item.objects.order_by("name").values_list("name", flat=True)))


def boom(request):
    raise RuntimeError("this view fails on purpose")


def stream(request):
    return StreamingHttpResponse(iter([b"abc", b"de"]))
""",
    "shop/templates/index.html": "one {{ words }}",
    "shop/static/shop.css": "body {}",
}

FLASK = {
    "shop.py": """
import os
import flask


def create_app(color="red"):
    app = flask.Flask("shop")

    @app.get("/")
    def index():
        return f"one {os.getpid()} {app.debug} {color}"

    @app.get("/boom")
    def boom():
        raise RuntimeError("this view fails on purpose")

    return app
"""
}


def python_path(directory: Path) -> dict[str, str]:
    """Return an environment in which ``flask`` has the command ``serve``, whether this tree is installed or not."""
    env = environment({})
    if not any(each.value == "wsgiserv.integrations.flask:serve" for each in entry_points(group="flask.commands")):
        found = directory / "entry_points" / "wsgiserv_flask-1.dist-info"
        found.mkdir(parents=True, exist_ok=True)
        (found / "METADATA").write_text("Metadata-Version: 2.1\nName: wsgiserv-flask\nVersion: 1\n")
        (found / "entry_points.txt").write_text("[flask.commands]\nserve = wsgiserv.integrations.flask:serve\n")
        env["PYTHONPATH"] += f"{os.pathsep}{found.parent}"
    return env


def write(directory: Path, files: Mapping[str, str]) -> None:
    """Write the files of a project."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def run_command(start: Start, directory: Path, *command: str, files: Mapping[str, str], env: Any = None) -> Server:
    """Start ``python`` with these arguments, in a directory with the files."""
    write(directory, files)
    whole = {**python_path(directory), **(env or {})}
    return start(None, command=[sys.executable, *command], bind="none", env=whole)


def address_of(server: Server) -> tuple[str, int]:
    """Return its address, which the command prints when it serves."""
    found = server.out.wait_for(r"http://([\d.]+|\[::1\]):(\d+)")
    return found[1].strip("[]"), int(found[2])


def ask(server: Server, path: str = "/", **more: Any) -> Any:
    """Return its response to a request of its own connection."""
    with RawClient(address_of(server)) as client:
        return client.get(path, headers="Connection: close\r\n", **more)


def wait_for_text(server: Server, text: str) -> None:
    """Wait until the first page begins with the text."""
    wait_until(lambda: ask(server).text.startswith(text), f"a page that begins with {text!r}")
