"""The rule: a value that looks like a secret is in no output of the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgiserv.config.loader import collect, load
from wsgiserv.config.masking import is_secret_name, mask, mask_text, mask_variable
from wsgiserv.config.present import config_text

SECRET = "hunter2"


def test_names() -> None:
    secret = (
        *("PASSWORD", "DB_PASSWORD", "pgpassword", "MYSQL_PASSWD", "SECRET_KEY", "DJANGO_SECRET", "GITHUB_TOKEN"),
        *("API_KEY", "AWS_ACCESS_KEY_ID", "APIKEY", "GOOGLE_CREDENTIALS", "SENTRY_DSN", "DB_PWD", "SSH_PASSPHRASE"),
    )
    plain = (
        *(
            "PATH",
            "HOME",
            "PWD",
            "OLDPWD",
            "KEYFILE",
            "SSL_KEY_FILE",
            "POSTGRES_PASSWORD_FILE",
            "DJANGO_SETTINGS_MODULE",
        ),
        *("DATABASE_URL", "PORT", "USER", "SECRET_FILENAME"),
    )
    assert [name for name in secret if not is_secret_name(name)] == []
    assert [name for name in plain if is_secret_name(name)] == []


def test_texts() -> None:
    cases = {
        f"postgres://shop:{SECRET}@db/shop": "postgres://shop:***@db/shop",
        f"redis://:{SECRET}@cache:6379/0": "redis://:***@cache:6379/0",
        f"amqp://u:p@{SECRET}/x@mq": "amqp://u:***@mq",
        f"a=http://u:{SECRET}@h": "a=http://u:***@h",
        f"DB_PASSWORD={SECRET}": "DB_PASSWORD=***",
        f"-w 2 -e SECRET_KEY={SECRET} -e 'A=b c'": "-w 2 -e SECRET_KEY=***",
        f"shop:make(debug=True, api_key='{SECRET}')": "shop:make(debug=True, api_key=***",
        "http://host:8000/x": "http://host:8000/x",
        "unix:/run/shop.sock": "unix:/run/shop.sock",
        "API_KEY=": "API_KEY=",
        "KEYFILE=/etc/k.pem": "KEYFILE=/etc/k.pem",
        "TOKEN == other": "TOKEN == other",
        "user@host": "user@host",
    }
    for text, masked in cases.items():
        assert mask_text(text) == masked


def test_variables_and_dictionaries() -> None:
    assert mask_variable("API_TOKEN", SECRET) == "***"
    assert mask_variable("API_TOKEN", "") == ""
    assert mask_variable("URL", f"http://a:{SECRET}@b") == "http://a:***@b"
    handler = {"class": "SMTPHandler", "credentials": ("me", SECRET), "secure": None, "args": [f"TOKEN={SECRET}", 5]}
    assert mask({"handlers": {"mail": handler}, "secrets": {"x": "y"}}) == {
        "handlers": {"mail": {**handler, "credentials": "***", "args": ["TOKEN=***", 5]}},
        "secrets": {"x": "y"},
    }
    odd = object()
    assert mask(odd) is odd


@pytest.mark.parametrize(
    ("file", "environ"),
    [
        (f"raw_env = ['DB_PASSWORD={SECRET}', 'A=1']", {}),
        (f"raw_env = {{'DB_PASSWORD': '{SECRET}'}}", {}),
        (f"raw_env = 'DATABASE_URL=postgres://shop:{SECRET}@db/shop'", {}),
        (f"logconfig_dict = {{'version': 1, 'x': {{'password': '{SECRET}'}}}}", {}),
        (f"wsgi_app = \"shop:make(password='{SECRET}')\"", {}),
        ("", {"WSGISERV_RAW_ENV": f"'DB_PASSWORD={SECRET}'"}),
        ("", {"WSGISERV_CMD_ARGS": f"-e API_TOKEN={SECRET} x:y"}),
    ],
)
def test_print_config_masks_and_says_so(tmp_path: Path, file: str, environ: dict[str, str]) -> None:
    (tmp_path / "gun.py").write_text(file)
    loaded = load(["-c", "gun.py"], environ, str(tmp_path))
    text = config_text(loaded.settings, loaded.sources)
    assert SECRET not in text
    assert "***" in text
    assert "# *** stands for a value that looks like a secret" in text
    assert SECRET in repr(loaded.settings)  # the server itself has it
    assert "***" not in config_text(load([], {}, str(tmp_path)).settings, loaded.sources)


def test_formats_are_no_secrets(tmp_path: Path) -> None:
    template = "key=%({x-key}i)s %(h)s"
    loaded = load(["--access-logformat", template], {}, str(tmp_path))
    assert template in config_text(loaded.settings, loaded.sources)


@pytest.mark.parametrize(
    ("argv", "environ"),
    [
        (["-e", f"SECRET={SECRET}", "-e", "nonsense"], {}),
        (["-e", f"SECRET={SECRET}\0"], {}),
        ([], {"WSGISERV_CMD_ARGS": f"-e 'SECRET={SECRET}"}),
        ([], {"WSGISERV_RAW_ENV": f"'SECRET={SECRET}"}),
        (["-b", f"http://me:{SECRET}@host"], {}),
    ],
)
def test_errors_show_none(tmp_path: Path, argv: list[str], environ: dict[str, str]) -> None:
    loaded = collect(argv, environ, str(tmp_path))
    assert loaded.faults
    assert SECRET not in "".join(map(str, loaded.faults))
