"""Pairs of a gunicorn setting and a value, made by rule, for the walk of gunicorn's KNOWN_SETTINGS.

A value is Python source text: gunicorn gets what it evaluates to, wsgiserv gets it in a configuration file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

# For each setting, whatever it is: nothing, wrong types, the ends of numbers, text forms.
ANY = (
    "None",
    "True",
    "False",
    "0",
    "1",
    "-1",
    "1.5",
    "''",
    "' '",
    "'text'",
    "'1'",
    "[]",
    "['text']",
    "{}",
    "b'x'",
    "object()",
)

# By gunicorn's validator: typical values, the boundaries, the text forms.
BY_VALIDATOR: dict[str, tuple[str, ...]] = {
    "validate_pos_int": (
        "2",
        "7",
        "30",
        "100",
        "65535",
        "'5'",
        "' 8 '",
        "'0x10'",
        "'0o17'",
        "'-1'",
        "'1.5'",
        "2**31",
        "10**12",
    ),
    "validate_bool": ("'true'", "'True'", "' TRUE '", "'false'", "'FALSE'", "'yes'", "'on'", "'0'", "2"),
    "validate_string": ("'-'", "' padded '", "'x/y.z'", "'é'", "('a', 'b')"),
    "validate_list_string": ("'a'", "['a', 'b']", "('a', 'b')", "{'a'}", "['a', 5]", "('a' for _ in range(1))"),
    "validate_dict": ("{'a': 'b'}", "dict()", "[('a', 'b')]", "'a=b'"),
    "validate_string_to_addr_list": (
        *("'*'", "'127.0.0.1'", "'10.0.0.0/8, 192.168.1.1'", "'::1'", "'10.0.0.1,'", "',10.0.0.1'", "'10.0.0.1/8'"),
        *("'*,10.0.0.1'", "'fd00::/8'", "'localhost'", "['10.0.0.1']", "'10.0.0.1 10.0.0.2'"),
    ),
    "validate_user": (f"'{os.geteuid()}'", f"{os.geteuid()}", "'root'", "'nobody'", "65534", "'no-such-user'"),
    "validate_group": (f"'{os.getegid()}'", f"{os.getegid()}", "'root'", "'nogroup'", "65534", "'no-such-group'"),
    "validate_class": ("lambda: 'sync'",),
    "validate_chdir": ("'/'", "'.'", "'/no/such/directory'"),
    "validate_statsd_address": (
        "'localhost:8125'",
        "'127.0.0.1'",
        "'unix:///run/statsd'",
        "'unix:8125'",
        "'[::1]:8125'",
    ),
    "validate_proxy_protocol": ("'off'", "'v1'", "'V2'", "'auto'", "'true'", "'none'", "'0'", "'yes'"),
    "validate_list_of_files_or_patterns": ("'/etc/passwd'", "['/etc/passwd']", "('*.nothing',)", "'/no/such/file'"),
    "validate_string_to_list": ("'SCRIPT_NAME'", "'SCRIPT_NAME, PATH_INFO'", "'A,,B'", "'REMOTE_USER'", "'*'"),
    "validate_header_map_behaviour": ("'drop'", "'refuse'", "'dangerous'", "'DROP'", "' refuse '"),
    "validate_reload_engine": ("'auto'", "'poll'", "'inotify'", "'POLL'"),
    "validate_ssl_version": ("2", "16", "17", "'TLSv1_2'", "__import__('ssl').PROTOCOL_TLS_SERVER"),
    "validate_http_protocols": ("'h1'", "'h1,h2'", "'h2'", "['h1']", "'h3'"),
    "validate_http2_cleartext": ("'off'", "'upgrade'", "'both'", "'prior-knowledge'"),
    "validate_http2_stream_limit": ("100", "'50'"),
    "validate_http2_window_size": ("65535", "2**31 - 1", "2**31"),
    "validate_http2_frame_size": ("16384", "16383", "16777215"),
    "validate_asgi_loop": ("'auto'", "'asyncio'", "'uvloop'"),
    "validate_asgi_lifespan": ("'auto'", "'on'", "'off'"),
    "validate_http_parser": ("'auto'", "'python'", "'fast'"),
}

# By name: what people write.
BY_NAME: dict[str, tuple[str, ...]] = {
    "bind": (
        *("'127.0.0.1:8000'", "':8000'", "'0.0.0.0:0'", "'[::]:8000'", "'[::1]'", "'localhost'", "'0.0.0.0'", "'8000'"),
        *(
            "'unix:/run/shop.sock'",
            "'unix:shop.sock'",
            "'unix:@abstract'",
            "'fd://3'",
            "'127.0.0.1:99999'",
            "'host:port'",
        ),
        *(
            "['127.0.0.1:8000', 'unix:s']",
            "'127.0.0.1:8000,127.0.0.1:8001'",
            "['a:1', 'a:1']",
            "'tcp://127.0.0.1:8000'",
        ),
        *("'http://127.0.0.1:8000'", "'unix:'", "b'127.0.0.1:8000'", "'unix://run/s'"),
    ),
    "worker_class": (
        *("'sync'", "'gthread'", "'gevent'", "'gevent_wsgi'", "'gevent_pywsgi'", "'egg:gunicorn#sync'"),
        *("'egg:gunicorn#gevent'", "'gunicorn.workers.sync.SyncWorker'", "'gunicorn.workers.gthread.ThreadWorker'"),
        *(
            "'gunicorn.workers.ggevent.GeventWorker'",
            "'tornado'",
            "'asgi'",
            "'eventlet'",
            "'gunicorn.workers.gasgi.ASGIWorker'",
        ),
        *("'uvicorn.workers.UvicornWorker'", "'no.such.Worker'", "'SYNC'", "' sync '"),
        *("__import__('gunicorn.workers.sync').workers.sync.SyncWorker",),
        *("type('Mine', (__import__('gunicorn.workers.sync').workers.sync.SyncWorker,), {})",),
    ),
    "logger_class": (
        *("'simple'", "'gunicorn.glogging.Logger'", "'gunicorn.instrument.statsd.Statsd'", "'no.such.Logger'"),
        *("__import__('gunicorn.glogging').glogging.Logger",),
        *("type('Mine', (__import__('gunicorn.glogging').glogging.Logger,), {})",),
    ),
    "loglevel": (
        "'debug'",
        "'INFO'",
        "'Warning'",
        "'error'",
        "'critical'",
        "'warn'",
        "'trace'",
        "'notset'",
        "' info '",
    ),
    "accesslog": ("'/dev/null'", "'/dev/stdout'", "'logs/access.log'"),
    "errorlog": ("'/dev/null'", "'/dev/stderr'", "'logs/error.log'"),
    "access_log_format": (
        *(
            "'%(h)s %(l)s'",
            "'%({x-id}i)s %({x}o)s %({HOME}e)s'",
            "'combined'",
            "'%(h)'",
            "'%h %l'",
            "'%(h)d'",
            "'%(h)q'",
        ),
        *(
            "'%(T)d'",
            "'%(D)06d'",
            "'100%'",
            "'100%%'",
            "'%(unknown)s'",
            "'%s'",
            '\'{"a": "%(a)s"}\'',
            "'%(L)f'",
            "'%(s)5s'",
        ),
    ),
    "umask": ("0o022", "0o777", "0o1000", "'022'", "'0o22'", "'077'", "'0x12'", "511", "512"),
    "timeout": ("0", "'30'", "30.5", "86400", "10**9"),
    "graceful_timeout": ("0", "'30'", "10**9"),
    "keepalive": ("0", "75", "10**9"),
    "limit_request_line": ("0", "8190", "8191", "4094", "65536"),
    "limit_request_fields": ("0", "32768", "40000"),
    "limit_request_field_size": ("0", "8190", "65536", "1048576"),
    "workers": ("'4'", "1000", "10**6"),
    "threads": ("'4'", "1000", "10**6"),
    "worker_connections": ("1", "10**6", "10**9"),
    "backlog": ("1", "65536", "10**9"),
    "raw_env": (
        "['A=1']",
        "'A=1'",
        "['A']",
        "['A=']",
        "['=1']",
        "['A=1', 'A=2']",
        "['A=b=c']",
        "['A B=1']",
        "{'A': '1'}",
    ),
    "raw_paste_global_conf": ("['a=1']", "['a']"),
    "secure_scheme_headers": (
        "{'X-FORWARDED-PROTO': 'https'}",
        "{'x-forwarded-proto': 'https'}",
        "{'A': 1}",
        "{1: 'a'}",
        "{'A B': 'c'}",
    ),
    "logconfig_dict": (
        "{'version': 1}",
        "{'version': 2}",
        "{'root': {'level': 'INFO'}}",
        "{'handlers': {'x': {'class': 'no.Such'}}}",
    ),
    "logconfig": ("'no-such-file.ini'", "'/dev/null'"),
    "logconfig_json": ("'no-such-file.json'", "'/dev/null'"),
    "syslog_addr": ("'unix:///dev/log#dgram'", "'udp://localhost:514'", "'tcp://[::1]:1'", "'localhost'"),
    "syslog_facility": ("'user'", "'LOCAL7'", "'mail'", "'nonsense'"),
    "proc_name": ("'shop'", "'a b'", "'gunicorn: shop'"),
    "pythonpath": ("'/srv/lib'", "'lib,/srv/lib'", "'/no/such'", "['/srv/lib']"),
    "protocol": ("'http'", "'uwsgi'", "'HTTP'", "'fcgi'"),
    "root_path": ("'/shop'", "'/shop/'", "'shop'", "'/'", "'//x'", "'/a b'"),
    "cert_reqs": ("2", "3", "__import__('ssl').CERT_REQUIRED"),
    "ciphers": ("'ECDHE+AESGCM'", "'TLSv1'", "'HIGH:!aNULL'"),
    "certfile": ("'/etc/hostname'", "'no-such.pem'"),
    "keyfile": ("'/etc/hostname'", "'no-such.key'"),
    "ca_certs": ("'no-such.pem'",),
    "worker_tmp_dir": ("'/dev/shm'", "'/no/such/directory'"),
    "tmp_upload_dir": ("'/tmp'", "'/no/such/directory'"),
    "pidfile": ("'/run/shop.pid'", "'shop.pid'", "'/no/such/directory/shop.pid'"),
    "control_socket": ("'shop.ctl'", "'/run/shop.ctl'"),
    "control_socket_mode": ("0o600", "0o660", "'0660'", "'0o660'", "0o777"),
    "wsgi_app": (
        "'shop'",
        "'shop:app'",
        "'shop.wsgi:application'",
        "'shop:make()'",
        "'shop:make(1, debug=True)'",
        "'shop:a.b'",
    ),
    "dirty_apps": ("['shop:Task']",),
    "config": ("'other.conf.py'",),
    "paste": ("'shop.ini'", "'shop.ini#main'"),
}

# Hooks: with the number of arguments that gunicorn demands, with others, as text, as other callables.


def _hooks(arity: int) -> Iterator[str]:
    for number in range(5):
        yield f"lambda {', '.join('abcd'[:number])}: None"
    names = ", ".join("abcd"[:arity])
    yield f"lambda {names}, *rest: None" if arity else "lambda *rest: None"
    yield "lambda *rest: None"
    yield f"lambda {names}, z=1: None"
    yield f"type('Hook', (), {{'__call__': lambda self, {names}: None}})()"
    yield f"type('Hook', (), {{'run': lambda self, {names}: None}})().run"
    yield f"__import__('functools').partial(lambda x, {names}: None, 1)"
    yield from (
        "'os.path.exists'",
        "'os.path.join'",
        "'no.such.function'",
        "'os.no_such'",
        "'function'",
        "print",
        "dict",
        "5",
    )


def _validator(known: Any) -> str:
    return str(known.validator.__qualname__).partition(".")[0]


def pairs(known_settings: list[Any]) -> Iterator[tuple[str, str]]:
    """Return each setting's name with each value, once."""
    for known in known_settings:
        values = [*ANY]
        if type(known.default) in (str, int, bool, list, dict):
            values.append(repr(known.default))
        kind = _validator(known)
        if kind in ("validate_callable", "validate_post_request"):
            default = known.__dict__["default"].__func__
            values += _hooks(default.__code__.co_argcount)
        values += BY_VALIDATOR.get(kind, ())
        values += BY_NAME.get(known.name, ())
        for value in dict.fromkeys(values):
            yield known.name, value
