"""Programs of the field: the application that has each, and what its own client does."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fieldprograms import Answer, Program, Running
from server import wait_until

FLASK = """
from flask import Flask

app = Flask(__name__)


@app.get("/")
def index():
    return "hello"


@app.get("/fail")
def fail():
    raise ValueError("on purpose")
"""

# ---- metrics -----------------------------------------------------------------------------------------------------

PROMETHEUS = """
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, multiprocess

served = Counter("served", "Requests")
alive = Gauge("alive", "Workers", multiprocess_mode="livesum")


def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        body = generate_latest(registry)
    else:
        served.inc()
        alive.set(1)
        body = b"ok"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
PROMETHEUS_CONF = """
import os

os.makedirs(os.environ["PROMETHEUS_MULTIPROC_DIR"], exist_ok=True)
workers = 3
preload_app = os.environ["PRELOAD"] == "1"


def child_exit(server, worker):
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)
"""
READ_METRICS = """
import sys, urllib.request
from prometheus_client.parser import text_string_to_metric_families as parse
text = urllib.request.urlopen(sys.argv[1] + "/metrics").read().decode()
found = {s.name: s.value for family in parse(text) for s in family.samples if not s.labels}
print(*(f"{name}={value:g}" for name, value in sorted(found.items())))
"""


def use_prometheus(running: Running) -> str:
    """Count across workers, a reload and a kill: the counter keeps all, the gauge of the living forgets the dead."""
    total = int(re.search(r"served_total=(\d+)", running.run(READ_METRICS))[1])  # type: ignore[index]

    def ask(number: int) -> None:
        nonlocal total
        for _ in range(number):
            assert running.get()[0] == 200
            total += 1

    def counted() -> bool:
        return f"served_total={total}" in running.run(READ_METRICS)

    ask(60)
    assert counted(), running.run(READ_METRICS)
    running.reload()
    ask(60)
    assert counted(), running.run(READ_METRICS)
    victim = running.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in running.workers() and len(running.workers()) >= 3, "a replacement", 30)
    running.server.expect("WS")
    ask(60)
    text = running.run(READ_METRICS)
    assert counted(), text
    alive = float(re.search(r"alive=(\d+)", text)[1])  # type: ignore[index]
    assert alive <= 3, f"dead workers are counted: {text}"
    return text


FLASK_EXPORTER = """
from flask import Flask
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

app = Flask(__name__)
metrics = GunicornInternalPrometheusMetrics(app)


@app.get("/")
def index():
    return "hello"
"""
FLASK_EXPORTER_CONF = """
import os

os.makedirs(os.environ["PROMETHEUS_MULTIPROC_DIR"], exist_ok=True)
workers = 2


def child_exit(server, worker):
    from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

    GunicornInternalPrometheusMetrics.mark_process_dead_on_child_exit(worker.pid)
"""


def use_flask_exporter(running: Running) -> str:
    """Read the metrics that the exporter serves itself."""
    for _ in range(40):
        assert running.get()[0] == 200
    running.reload()
    for _ in range(10):
        assert running.get()[0] == 200
    status, text = running.get("/metrics")
    assert status == 200
    counts = re.findall(r'flask_http_request_total\{[^}]*status="200"[^}]*\} (\d+)', text)
    total = sum(map(float, counts))
    assert total >= 50, text
    return f"{total:g} requests counted"


# ---- errors and traces -------------------------------------------------------------------------------------------

SENTRY = (
    """
import os
import sentry_sdk

sentry_sdk.init(dsn=f"http://key@127.0.0.1:{os.environ['SINK']}/1", traces_sample_rate=1.0)
"""
    + FLASK
)


def use_sentry(running: Running) -> str:
    """Have an exception and a transaction sent."""
    assert running.get("/fail")[0] == 500
    assert running.get("/")[0] == 200
    running.sink.wait_for("/api/1/envelope/", "on purpose")
    running.sink.wait_for("/api/1/envelope/", '"transaction"')
    return f"the exception and a transaction came in {len(running.sink.bodies)} envelopes"


def use_otel(running: Running) -> str:
    """Have spans exported."""
    assert running.get("/")[0] == 200
    running.sink.wait_for("/v1/traces", "GET /")
    running.reload()
    before = len(running.sink.bodies)
    assert running.get("/")[0] == 200
    wait_until(lambda: len(running.sink.bodies) > before, "spans of the new workers", 30)
    return f"spans in {len(running.sink.bodies)} exports, after a reload too"


def use_ddtrace(running: Running) -> str:
    """Have traces sent to an agent."""
    assert running.get("/")[0] == 200
    running.sink.wait_for("/traces", "flask.request")
    return "traces with flask.request came"


NEWRELIC = """
import newrelic.agent
from flask import Flask

app = Flask(__name__)


@app.get("/")
def index():
    transaction = newrelic.agent.current_transaction()
    return f"{transaction and transaction.name}"
"""
NEWRELIC_INI = """
[newrelic]
license_key = 0000000000000000000000000000000000000000
app_name = probe
developer_mode = true
log_level = info
log_file = newrelic.log
monitor_mode = true
"""


def use_newrelic(running: Running) -> str:
    """See a transaction of the agent around each request."""
    # The agent of each worker registers while its first requests are served.
    wait_until(lambda: all(running.get()[1] != "None" for _ in range(20)), "20 transactions in a row", 30)
    name = running.get()[1]
    assert "index" in name, name
    return f"transaction {name}"


# ---- databases ---------------------------------------------------------------------------------------------------

PSYCOGREEN = """
import os
import psycopg2
from psycopg2.pool import ThreadedConnectionPool

pool = None


def app(environ, start_response):
    global pool
    if pool is None:
        pool = ThreadedConnectionPool(1, 40, host=os.environ["PGSOCKETS"], dbname="postgres", user="postgres")
    connection = pool.getconn()
    try:
        with connection.cursor() as cursor:
            cursor.execute("select pg_sleep(0.3), 42")
            body = str(cursor.fetchone()[1]).encode()
        connection.rollback()
    finally:
        pool.putconn(connection)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
PSYCOGREEN_CONF = """
workers = 1
worker_class = "gevent"


def post_fork(server, worker):
    from psycogreen.gevent import patch_psycopg

    patch_psycopg()
    worker.log.info("psycopg is patched")
"""


def postgres(directory: Path) -> Iterator[dict[str, str]]:
    """Run a PostgreSQL of our own, as a user other than root, on a Unix socket only."""
    bins = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path("/usr/local/bin"), Path("/usr/bin")]
    place = next((each for each in bins if (each / "initdb").exists() and (each / "postgres").exists()), None)
    assert place is not None, "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    base = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        subprocess.run(["chown", "postgres", str(base)], check=True)
        as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]
    subprocess.run(
        [*as_user, str(place / "initdb"), "-A", "trust", "-U", "postgres", str(base / "data")],
        check=True,
        capture_output=True,
        cwd="/",
    )
    command = [str(place / "postgres"), "-D", str(base / "data"), "-k", str(base), "-h", "", "-c", "max_connections=60"]
    log = (directory / "postgres.log").open("wb")
    process = subprocess.Popen([*as_user, *command], stdout=log, stderr=log, cwd="/")
    try:
        wait_until(lambda: (base / ".s.PGSQL.5432").exists(), "PostgreSQL's socket", 30)
        yield {"PGSOCKETS": str(base)}
    finally:
        process.terminate()
        process.wait(30)
        log.close()
        subprocess.run(["rm", "-rf", str(base)], check=False)


def use_psycogreen(running: Running) -> str:
    """Have 30 queries of 0.3 s wait at once in one worker."""
    running.server.wait_for_log("psycopg is patched", 30)
    wait_until(lambda: running.get()[1] == "42", "the database", 30)
    began = time.monotonic()
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(running.get())) for _ in range(30)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    took_s = time.monotonic() - began
    assert answers == [(200, "42")] * 30, answers
    assert took_s < 4.0, f"{took_s:.1f} s: one after the other would be 9"
    return f"30 queries of 0.3 s in {took_s:.2f} s, one gevent worker"


# ---- files and logs ----------------------------------------------------------------------------------------------

WHITENOISE = (
    FLASK
    + """
from whitenoise import WhiteNoise

app.wsgi_app = WhiteNoise(app.wsgi_app, root="static_", prefix="files/")
"""
)


def use_whitenoise(running: Running) -> str:
    """Take a file: whole, again with its ETag, a range of it."""
    status, text = running.get("/files/a.txt")
    assert (status, text) == (200, "0123456789")
    client = http.client.HTTPConnection(*running.server.address, timeout=30)
    client.request("GET", "/files/a.txt")
    response = client.getresponse()
    response.read()
    tag = response.headers["ETag"]
    client.request("GET", "/files/a.txt", headers={"If-None-Match": tag})
    response = client.getresponse()
    response.read()
    assert response.status == 304
    client.request("GET", "/files/a.txt", headers={"Range": "bytes=2-4"})
    response = client.getresponse()
    assert (response.status, response.read()) == (206, b"234")
    client.close()
    assert running.get("/")[1] == "hello"
    return "200, 304, 206, and the application behind it"


STRUCTLOG = """
import structlog

structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()])
log = structlog.get_logger()


def app(environ, start_response):
    log.info("asked", path=environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def use_structlog(running: Running) -> str:
    """Read the application's lines on the standard output."""
    assert running.get("/somewhere")[0] == 200
    line = running.server.out.wait_for("somewhere", 20).string
    assert json.loads(line)["event"] == "asked"
    return line


JSON_LOGS = """
import sys

accesslog = "-"
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
        },
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}},
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["console"], "propagate": False},
        "gunicorn.access": {"level": "INFO", "handlers": ["console"], "propagate": False},
    },
}
"""


def use_json_logs(running: Running) -> str:
    """Read the server's own lines and the access log as JSON."""
    assert running.get("/?page")[0] == 200
    access = json.loads(running.server.out.wait_for(r"gunicorn\.access.*\?page", 20).string)
    ready = json.loads(running.server.out.wait_for('"gunicorn.error".*ready', 20).string)
    assert "/?page" in access["message"], access
    return f"{access['name']}: {access['message'][:60]} ... and {ready['name']}"


# ---- whole programs ----------------------------------------------------------------------------------------------


PIP = """
import os, subprocess, sys

command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "-d", "got"]
out = subprocess.run([*command, "-i", sys.argv[1] + "/simple/", "probe"], capture_output=True, text=True)
assert out.returncode == 0, out.stderr
print(os.listdir("got")[0])
"""


def use_pypiserver(running: Running) -> str:
    """Download a package with pip, and see it listed."""
    status, text = running.get("/simple/")
    assert status == 200
    assert "probe" in text, text
    return f"pip has downloaded {running.run(PIP)}"


WHEEL = """
import zipfile
with zipfile.ZipFile("packages/probe-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("probe.py", "")
    wheel.writestr("probe-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: probe\\nVersion: 1.0\\n")
    wheel.writestr("probe-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr("probe-1.0.dist-info/RECORD", "")
"""

PYPISERVER = (
    """
import os
os.makedirs("packages", exist_ok=True)
"""
    + WHEEL
    + """
import pypiserver

app = pypiserver.app(roots=[os.path.abspath("packages")], disable_fallback=True)
"""
)

RADICALE = """
[auth]
type = none

[storage]
filesystem_folder = ./collections

[rights]
type = authenticated
"""
RADICALE_CLIENT = """
import sys
import caldav

client = caldav.DAVClient(url=sys.argv[1] + "/", username="someone", password="")
calendar = client.principal().make_calendar(name="probe")
calendar.save_event(
    "BEGIN:VCALENDAR\\nVERSION:2.0\\nPRODID:-//probe//EN\\nBEGIN:VEVENT\\nUID:1\\nDTSTAMP:20260101T000000Z\\n"
    "DTSTART:20260102T000000Z\\nDTEND:20260103T000000Z\\nSUMMARY:a day\\nEND:VEVENT\\nEND:VCALENDAR\\n"
)
print([event.icalendar_component["SUMMARY"].to_ical().decode() for event in calendar.events()])
"""


def use_radicale(running: Running) -> str:
    """Make a calendar and an event with caldav, and read it again."""
    found = running.run(RADICALE_CLIENT)
    assert "a day" in found, found
    return f"caldav has read {found}"


MOTO = """
from moto.server import DomainDispatcherApplication, create_backend_app

app = DomainDispatcherApplication(create_backend_app)
"""
MOTO_CLIENT = """
import sys
import boto3

client = boto3.client(
    "s3", endpoint_url=sys.argv[1], region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
)
client.create_bucket(Bucket="probe")
client.put_object(Bucket="probe", Key="large", Body=b"x" * 3_000_000)
print(len(client.get_object(Bucket="probe", Key="large")["Body"].read()))
"""


def use_moto(running: Running) -> str:
    """Put an object of 3 MB and get it with boto3."""
    size = running.run(MOTO_CLIENT)
    assert size == "3000000", size
    return f"boto3 has got {size} bytes"


MLFLOW_CLIENT = """
import sys
import mlflow

mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("probe")
with mlflow.start_run() as run:
    mlflow.log_param("depth", 3)
    for step in range(5):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
client = mlflow.tracking.MlflowClient()
print(client.get_run(run.info.run_id).data.params, len(client.get_metric_history(run.info.run_id, "loss")))
"""


def use_mlflow(running: Running) -> str:
    """Log a run with mlflow's client and read it again."""
    found = running.run(MLFLOW_CLIENT)
    assert "'depth': '3'" in found, found
    return f"mlflow has read {found}"


PROGRAMS = {
    "prometheus_client": Program(
        ("prometheus-client",),
        use_prometheus,
        files={"site_.py": PROMETHEUS, "conf.py": PROMETHEUS_CONF},
        arguments=("-c", "conf.py"),
        environment={"PROMETHEUS_MULTIPROC_DIR": "{directory}/metrics", "PRELOAD": "0"},
    ),
    "prometheus_client, preload": Program(
        ("prometheus-client",),
        use_prometheus,
        files={"site_.py": PROMETHEUS, "conf.py": PROMETHEUS_CONF},
        arguments=("-c", "conf.py"),
        environment={"PROMETHEUS_MULTIPROC_DIR": "{directory}/metrics", "PRELOAD": "1"},
    ),
    "prometheus-flask-exporter": Program(
        ("prometheus-flask-exporter",),
        use_flask_exporter,
        files={"site_.py": FLASK_EXPORTER, "conf.py": FLASK_EXPORTER_CONF},
        arguments=("-c", "conf.py"),
        environment={"PROMETHEUS_MULTIPROC_DIR": "{directory}/metrics"},
    ),
    "sentry-sdk": Program(
        ("sentry-sdk[flask]",), use_sentry, files={"site_.py": SENTRY}, environment={"SINK": "{port}"}
    ),
    "opentelemetry-instrument": Program(
        (
            "opentelemetry-distro",
            "opentelemetry-exporter-otlp-proto-http",
            "opentelemetry-instrumentation-flask",
            "flask",
        ),
        use_otel,
        files={"site_.py": FLASK},
        environment={
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "300",
        },
        wrapper=("opentelemetry-instrument",),
    ),
    "ddtrace-run": Program(
        ("ddtrace", "flask"),
        use_ddtrace,
        files={"site_.py": FLASK},
        environment={"DD_TRACE_AGENT_URL": "http://127.0.0.1:{port}", "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false"},
        wrapper=("ddtrace-run",),
    ),
    "newrelic-admin run-program": Program(
        ("newrelic", "flask"),
        use_newrelic,
        files={"site_.py": NEWRELIC, "newrelic.ini": NEWRELIC_INI},
        environment={"NEW_RELIC_CONFIG_FILE": "newrelic.ini"},
        wrapper=("newrelic-admin", "run-program"),
    ),
    "psycogreen": Program(
        ("psycogreen", "psycopg2-binary"),
        use_psycogreen,
        files={"site_.py": PSYCOGREEN, "conf.py": PSYCOGREEN_CONF},
        arguments=("-c", "conf.py"),
        classes=("gevent",),
        around=postgres,
    ),
    "whitenoise": Program(
        ("whitenoise", "flask"), use_whitenoise, files={"site_.py": WHITENOISE, "static_/a.txt": "0123456789"}
    ),
    "structlog": Program(
        ("structlog",), use_structlog, files={"site_.py": STRUCTLOG}, environment={"PYTHONUNBUFFERED": "1"}
    ),
    "python-json-logger": Program(
        ("python-json-logger", "flask"),
        use_json_logs,
        files={"site_.py": FLASK, "conf.py": JSON_LOGS},
        arguments=("-c", "conf.py", "-w", "2"),
    ),
    "pypiserver": Program(("pypiserver",), use_pypiserver, files={"site_.py": PYPISERVER}),
    "radicale": Program(
        ("radicale", "caldav"),
        use_radicale,
        app="radicale",
        files={"radicale.ini": RADICALE},
        environment={"RADICALE_CONFIG": "{directory}/radicale.ini"},
    ),
    "moto": Program(
        ("moto[server]", "boto3"), use_moto, app="site_:app", files={"site_.py": MOTO}, arguments=("-w", "1")
    ),
    "mlflow": Program(
        ("mlflow",),
        use_mlflow,
        app="mlflow.server:app",
        environment={
            "_MLFLOW_SERVER_FILE_STORE": "sqlite:///{directory}/mlflow.db",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "{directory}/artifacts",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "false",
        },
        arguments=("-w", "1", "--timeout", "120"),
        classes=("sync", "threads"),
    ),
}
