"""A small site that shows what a server passes to an application."""

import logging
import os
import sys
import time


def looks_like_gunicorn():
    return {
        "SERVER_SOFTWARE": "gunicorn" in os.environ.get("SERVER_SOFTWARE", ""),
        "argv": "gunicorn" in sys.argv[0],
        "modules": "gunicorn" in sys.modules,
    }


def page(environ):
    first, _, rest = environ["PATH_INFO"].lstrip("/").partition("/")
    if first == "pid":
        return str(os.getpid())
    if first == "environ":
        return repr(environ.get(rest))
    if first == "env":
        return repr(os.environ.get(rest))
    if first == "fields":
        return "\n".join(f"{name}: {environ[name]}" for name in sorted(environ) if name.startswith("HTTP_"))
    if first == "where":
        names = ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "wsgi.url_scheme", "REMOTE_ADDR")
        return "\n".join(f"{name}: {environ.get(name)}" for name in names)
    if first == "flags":
        return ", ".join(f"{name} {bool(environ[f'wsgi.{name}'])}" for name in ("multithread", "multiprocess", "run_once"))
    if first == "looks":
        return repr(looks_like_gunicorn())
    if first == "body":
        return repr(environ["wsgi.input"].read())
    if first == "print":
        print("printed by the shop", flush=True)
        print("complained by the shop", file=sys.stderr, flush=True)
    if first == "log":
        logging.getLogger("shop.orders").warning("order %s is late", 17)
        logging.getLogger("shop.orders").info("order %s is fine", 18)
    if first == "gunicorn-log":
        logging.getLogger("gunicorn.error").warning("written through the server's log")
    if first == "sleep":
        time.sleep(0.2)
    if first == "hang":
        time.sleep(60)
    if first == "error":
        raise RuntimeError("the shop is closed")
    if first == "cwd":
        return os.path.basename(os.getcwd())
    if first == "umask":
        mask = os.umask(0)
        os.umask(mask)
        return oct(mask)
    if first == "user":
        return f"{os.geteuid()}:{os.getegid()}"
    return "hello from the shop"


def app(environ, start_response):
    text = page(environ).encode()
    path = environ["PATH_INFO"]
    status = "200 OK"
    fields = [("Content-Type", "text/plain"), ("Content-Length", str(len(text))), ("X-Shop", "open")]
    if path.startswith("/status/"):
        status = path.removeprefix("/status/") + " As Asked"
    if path == "/away":
        status = "302 Found"
        fields.append(("Location", environ["wsgi.url_scheme"] + "://" + environ.get("HTTP_HOST", "") + "/"))
    start_response(status, fields)
    return [text]


def make_app(name="shop"):
    def named(environ, start_response):
        text = f"hello from {name}".encode()
        start_response("200 OK", [("Content-Length", str(len(text))), ("X-Shop", name)])
        return [text]

    return named
