"""Declares the settings of the processes themselves: environment, privileges, logs, TLS files, development, hooks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from wsgiserv.config import values as parsers
from wsgiserv.config.logger_class import LOGGER_CLASS
from wsgiserv.config.setting import Kind, Section
from wsgiserv.config.values import FILE, SECONDS, SWITCH, TEXT, TEXT_OR_NONE, choice

Hook: TypeAlias = Callable[..., Any] | None

_LEVEL = choice(
    *("debug", "info", "warning", "error", "critical"),
    metavar="LEVEL",
    other={"warn": "warning", "fatal": "critical", "trace": "debug", "notset": "debug"},
)


def _hook(help: str, arguments: str, doc: str = "") -> Hook:
    kind = Kind(parsers.hook(arguments.count(",") + 1), f"a function ({arguments}) or the dotted path of one")
    return Section.HOOKS(None, kind, help, "", doc=f"Called as `({arguments})`. {doc}")


@dataclass(frozen=True, kw_only=True, eq=False)
class ProcessSettings:
    """The part of `Settings` about processes, logs and files. A hook is None or a function of the user's."""

    # Process
    # Made absolute by the loader, against the directory of the start: a reload and an upgrade must find the same one.
    chdir: str = Section.PROCESS(
        ".",
        TEXT,
        "Change to this directory before anything else is opened.",
        metavar="DIR",
        accepts="a directory that exists",
        doc="""Relative paths of other settings (pidfile, logs, certificates, Unix sockets) start here, and it is
            importable. The configuration file itself is looked for where the command was typed. Where the name is a
            link, each worker that starts follows it anew, and so do SIGHUP and SIGUSR2.""",
        show_default="where the command is typed",
    )
    pythonpath: str | None = Section.PROCESS(
        None,
        Kind(parsers.text_or_none, "directories, separated by commas", "DIRS"),
        "Directories to import from, separated by commas.",
    )
    # Applied after the configuration file has run: what the file reads of the environment at a start is the service
    # manager's.
    raw_env: tuple[str, ...] = Section.PROCESS(
        (),
        Kind(parsers.environment_pairs, "KEY=VALUE, or a list of such; for example 'DEBUG=0'", "KEY=VALUE", "many"),
        "Set an environment variable for the application; may be repeated.",
        "-e --env",
    )
    # Not in a file: what it gives is in the environment before the file's code runs.
    env_file: tuple[str, ...] = Section.PROCESS(
        (),
        Kind(parsers.files, "the path of a file with lines NAME=value", "FILE", "many"),
        "Read settings and the application's environment from this file; may be repeated.",
        in_file=False,
        doc="""Its variables are put into the environment before the configuration file runs, so they reach
            that, the hooks and the application; those named `WSGISERV_...`, `PORT` and so on give settings, too. A
            variable that the environment has already stays as it is; of several files the last one wins; `raw_env`
            goes before them. It is read again at a reload. See
            [Environment files](deployment.md#environment-files).""",
    )
    # Off: a service manager follows the process that it has started.
    daemon: bool = Section.PROCESS(
        False,
        SWITCH,
        "Run in the background, detached from the terminal.",
        "-D --daemon",
        doc="Not under systemd or supervisor, which want the process in the foreground.",
    )
    # None: a service manager knows the process id, and a file that nobody reads goes stale.
    pidfile: str | None = Section.PROCESS(None, FILE, "Write the master's process id to this file.", "-p --pid")
    # On by default: a server without one cannot be asked what it does just when that matters. It listens on no
    # network.
    control_socket: str | None = Section.PROCESS(
        None,
        Kind(parsers.path_or_off, "a path, or 'off' for none", "FILE"),
        "The Unix socket for wsgiservctl; 'off' for none.",
        doc="""By default `PID.sock`, after the master, in the first of these directories that can be used:
            `$RUNTIME_DIRECTORY` (systemd's `RuntimeDirectory=`), `$XDG_RUNTIME_DIR/wsgiserv`, `/run/wsgiserv` for
            root, `/tmp/wsgiserv-UID`; `wsgiservctl` looks there. It has mode 0600, and only the server's user and
            root get answers. Where there cannot be one, the server runs without it and says so in the log. A path
            that is set here and cannot be used (its directory does not exist) ends the start with status 2. Takes
            effect at a restart or an upgrade.""",
        show_default="in the runtime directory",
    )
    # A switch of its own, though 'off' says the same: gunicorn has it under this name and flag.
    control_socket_disable: bool = Section.PROCESS(
        False, SWITCH, "Have no control socket, whatever `control_socket` says.", "--no-control-socket"
    )
    # Its owner's alone: whoever may connect can stop the server.
    control_socket_mode: int = Section.PROCESS(
        0o600,
        Kind(parsers.mode, "a file mode: in text octal, as of chmod(1), such as 660; in a Python file 0o660", "MODE"),
        "The mode of the control socket's file; octal.",
        doc="""With 0660 the members of `group` command the server, with 0666 everybody: give the socket a path of its
            own (`control_socket`), since the runtime directory is closed to other users. They name it:
            `wsgiservctl --socket PATH`.""",
        show_default="0600",
    )
    # The number of the process, not None: it is compared with the effective one wherever rights are dropped.
    user: int = Section.PROCESS(
        os.geteuid(),
        Kind(parsers.user, "the name or the number of a user of this host", "USER"),
        "Run the workers as this user.",
        "-u --user",
        doc="""Only root can: the master stays root, opens the logs and hands them on. The workers get the user's
            groups, `HOME`, `USER` and `LOGNAME` (unless `raw_env` sets them). A server whose workers run as root
            warns once at its start; `user = 'root'` says that it is meant.""",
        show_default="the user who starts it",
    )
    # For root with another `user` the loader puts the primary group of that user here: root's group would keep its
    # rights.
    group: int = Section.PROCESS(
        os.getegid(),
        Kind(parsers.group, "the name or the number of a group of this host", "GROUP"),
        "Run the workers as this group.",
        "-g --group",
        show_default="the primary group of `user`",
    )
    # gunicorn's default is off. Without the user's own groups a worker cannot open files that are shared through a
    # group.
    initgroups: bool = Section.PROCESS(
        True,
        SWITCH,
        "Give the workers all the groups that `user` belongs to.",
        doc="With `--no-initgroups` they are in `group` alone.",
    )
    # 0 is gunicorn's default, and taken literally would make each file writable for everyone: so it means 'as
    # inherited'.
    umask: int = Section.PROCESS(
        0,
        Kind(
            parsers.mode,
            "a file mode mask: in text octal, as of umask(1), for example 027; in a Python file 0o027",
            "MODE",
        ),
        "The file mode mask of the workers, of log files and Unix sockets; octal.",
        "-m --umask",
        doc="""Text is octal, as of umask(1): `--umask 77` is `0o77` (gunicorn reads 77 as decimal). A number in
            a configuration file is the mask itself: write `umask = 0o77`. 0 leaves the mask that the server was
            started with, but for Unix sockets, whose mode is 0777 then.""",
    )
    # Off: a reload would be all or nothing, and connections opened at import would be shared by all workers.
    preload_app: bool = Section.PROCESS(
        False,
        SWITCH,
        "Load the application once, before the workers are forked.",
        "--preload",
        doc="Workers start faster and share memory; `HUP` loads it anew. [Preloading](preload.md).",
    )
    # zygote: code that the master has loaded cannot be loaded anew, and its faults would be the master's.
    preload_in: Literal["zygote", "master"] = Section.PROCESS(
        "zygote",
        choice("zygote", "master", metavar="WHERE"),
        "Where `preload_app` loads the application: in a process of its own, or in the master.",
        doc="""`master` is gunicorn's way, for programs that count the master's children: these are the workers then,
            and nothing else. `HUP` loads no new code, and what the application does at its import (threads, memory,
            faults) is done in the master. Takes effect at a restart or an upgrade.
            [Preloading](preload.md#in-the-master).""",
    )
    # off: what an application does for gunicorn alone may be wrong here; its owner decides.
    appear_as: Literal["off", "gunicorn"] = Section.PROCESS(
        "off",
        choice("off", "gunicorn", metavar="NAME", other={"none": "off", "false": "off", "wsgiserv": "off"}),
        "Appear as 'gunicorn' to an application that looks for it.",
        doc="""With `gunicorn`, `SERVER_SOFTWARE` in the process's environment is `gunicorn/VERSION`, `sys.argv[0]` the
            path of a gunicorn command, and `sys.modules` has `gunicorn`: the installed package, or a stand-in with its
            version. The request's environ and the `Server` header stay as they are. Without it the variable is
            `wsgiserv/` and the version. `raw_env` may set the variable to anything else.""",
    )
    # gunicorn's workers touch a file there all the time; ours need none.
    worker_tmp_dir: str | None = Section.PROCESS(
        None,
        FILE,
        "A directory for workers' heartbeat files: checked, and not used.",
        metavar="DIR",
        accepts="a directory that exists",
        doc="""The heartbeat lives in shared memory, so nothing is written there. As with gunicorn the server does not
            start when the directory is missing or cannot be written to. Large bodies are kept in `spool_dir`.""",
    )
    # The environment variable is gunicorn's: it turns sendfile off for a host whose file system fails with it.
    sendfile: bool = Section.PROCESS(True, SWITCH, "Send files with the kernel's sendfile.", environment="SENDFILE")
    # The loader fills it from the next one, and that from the application: hooks and logs read one field.
    proc_name: str | None = Section.PROCESS(
        None, TEXT_OR_NONE, "The name in the processes' titles.", "-n --name", show_default="the application"
    )
    default_proc_name: str = Section.PROCESS(
        "wsgiserv",
        TEXT,
        "The name in the processes' titles when `proc_name` is not set.",
        "",
        show_default="the application",
    )

    # Logging
    # The standard error: containers and service managers collect it.
    errorlog: str = Section.LOGGING(
        "-",
        Kind(lambda raw: parsers.path(raw) or "-", "a path, or '-' for the standard error", "FILE"),
        "The error log; '-' is the standard error.",
        "--error-logfile --log-file",
        old_names=("logfile",),
    )
    loglevel: str = Section.LOGGING(
        "info", _LEVEL, "The least severe messages that go to the error log.", "--log-level"
    )
    # Off, as in gunicorn: a proxy in front has one already, and it costs time in each request.
    accesslog: str | None = Section.LOGGING(
        None,
        FILE,
        "The access log; '-' is the standard output.",
        "--access-logfile",
        accepts="a path, or '-' for the standard output",
        show_default="off",
    )
    # 'combined' is what log analysers know.
    access_log_format: str = Section.LOGGING(
        "combined",
        Kind(
            parsers.text,
            "'common', 'combined', 'json', or a format such as '%(h)s %(t)s \"%(r)s\" %(s)s %(b)s'",
            "FORMAT",
        ),
        "'common', 'combined', 'json', or a format of atoms such as %(h)s.",
        "--access-logformat",
        doc="""The atoms are gunicorn's. `combined` is the format that gunicorn has by default. In a format that
            begins with `{` the values are escaped as JSON.""",
    )
    # gunicorn's three; where several are given, `wsgiserv.logs.config` applies gunicorn's order.
    logconfig: str | None = Section.LOGGING(
        None, FILE, "A logging configuration file in the format of `logging.config`.", "--log-config"
    )
    logconfig_dict: dict[str, Any] = Section.LOGGING(
        {},
        Kind(parsers.mapping, "a dictionary"),
        "A logging configuration as a dictionary, for `logging.config.dictConfig`.",
        "",
    )
    logconfig_json: str | None = Section.LOGGING(
        None, FILE, "A file with `logconfig_dict` in JSON.", "--log-config-json"
    )
    # None, not the class's path: the server's own logs are no object of such a class.
    logger_class: str | type[Any] | None = Section.LOGGING(
        None,
        LOGGER_CLASS,
        "A class of your own for both logs, derived from gunicorn's Logger.",
        doc="""Its `setup`, `access`, `atoms`, `now`, `error` and so on are called as gunicorn calls them.
            `gunicorn.glogging.Logger` and `simple` mean the server's own logs. See [Logs](logging.md#logger_class).""",
        show_default="the server's own logs",
    )
    # Off: what the application prints belongs to its own stream unless its owner says so.
    capture_output: bool = Section.LOGGING(False, SWITCH, "Send what the application prints to the error log.")

    # TLS
    # Turns TLS on by being there: a separate switch could contradict it.
    certfile: str | None = Section.TLS(None, FILE, "The certificate, and its chain, in PEM; turns TLS on.")
    keyfile: str | None = Section.TLS(None, FILE, "The certificate's private key in PEM.", show_default="in certfile")
    # Files are read in pairs, so one flag gives both: two flags could be paired wrongly.
    sni_certificates: dict[str, tuple[str, str | None]] = Section.TLS(
        {},
        Kind(
            parsers.sni_certificates,
            "host names with a certificate and its key, as 'shop.example=shop.pem,shop.key'",
            "NAME=FILES",
            "many",
        ),
        "A certificate for clients that ask for this name (SNI).",
        "--sni-certificate",
        doc="""Clients that name another host, or none, get `certfile`. `*.shop.example` stands for one label. A
            dictionary in a configuration file: `{'shop.example': ('shop.pem', 'shop.key')}`; the key may be in the
            certificate's file.""",
        show_default="none",
    )
    ca_certs: str | None = Section.TLS(None, FILE, "The authorities that clients' certificates must come from, in PEM.")
    # Numbers, as in gunicorn and `ssl.VerifyMode`, so that both files and `ssl.CERT_REQUIRED` work.
    cert_reqs: int = Section.TLS(
        0,
        Kind(parsers.integer(0, 2), "0 (none), 1 (optional) or 2 (required), as in ssl.VerifyMode", "N"),
        "Ask clients for a certificate: 0 no, 1 optional, 2 required.",
    )
    # TLS 1.2 alone: OpenSSL keeps the suites of TLS 1.3 in a list of their own, and none of them is weak.
    ciphers: str | None = Section.TLS(
        None,
        Kind(parsers.text_or_none, "a list of ciphers in OpenSSL's notation", "LIST"),
        "The ciphers for TLS 1.2, in OpenSSL's notation.",
        show_default="Python's",
    )
    # 5 s: browsers come back to a page's connection within a few seconds, and a deploy must not wait for longer.
    tls_linger: float = Section.TLS(
        5.0,
        SECONDS,
        "How long a leaving worker keeps idle TLS connections; 0 closes them at once.",
        doc="""A TLS connection cannot be moved to another worker. A worker that leaves (reload, recycling, fewer
            workers, upgrade) keeps the idle ones for this long, at most `graceful_timeout`, answers the next request
            of each with `Connection: close`, and exits as soon as all are closed. Its replacement serves meanwhile.
            When the whole server stops they are closed at once. The same holds for other connections that cannot be
            moved.""",
    )

    # Development and checks
    # Off: watching costs time, and a file half-written by a deploy would be loaded.
    reload: bool = Section.DEVELOPMENT(False, SWITCH, "Restart the workers when the code changes; for development.")
    # gunicorn's inotify is what watchfiles uses on Linux.
    reload_engine: Literal["auto", "poll", "watchfiles"] = Section.DEVELOPMENT(
        "auto",
        choice("auto", "poll", "watchfiles", metavar="NAME", other={"inotify": "auto"}),
        "How changes are detected: 'auto', 'poll' or 'watchfiles'.",
        doc="`auto` is watchfiles where that package is installed. gunicorn's `inotify` is taken as `auto`.",
    )
    reload_extra_files: tuple[str, ...] = Section.DEVELOPMENT(
        (),
        Kind(
            parsers.files,
            "a file that exists, a pattern such as 'templates/**/*.html', or a list of these",
            "FILE",
            "many",
        ),
        "Also restart when this file or pattern changes; may be repeated.",
        "--reload-extra-file",
    )
    # Off: it makes the server a hundred times as slow.
    spew: bool = Section.DEVELOPMENT(
        False, SWITCH, "Print each line of Python that the server and the application execute."
    )
    # These two end the command; they are settings since gunicorn has them, and a file may set them.
    check_config: bool = Section.DEVELOPMENT(
        False,
        SWITCH,
        "Check the configuration and load the application, then exit.",
        doc="""Finds what would stop the start (logs, pid file, directories, addresses, users, certificates, the
            application, `warmup`), prints each problem on a line, and exits with the status that the start would end
            with. Everything happens in a child process; nothing listens, and no file is made or emptied. Hooks are
            not called, except `ssl_context`. An address, socket or pid file that a running server has is no problem:
            that server can be reloaded. Notes tell what a configuration for gunicorn does otherwise here: see
            [From gunicorn](migration-from-gunicorn.md). When all is good it prints what it has found: the
            configuration file, the application, the worker class, the addresses.""",
    )
    print_config: bool = Section.DEVELOPMENT(False, SWITCH, "Print every setting and where it came from, then exit.")

    # Hooks
    on_starting: Hook = _hook(
        "Called in the master before it starts.", "server", doc="If it raises, the server does not start."
    )
    on_reload: Hook = _hook("Called in the master when it reloads (SIGHUP).", "server")
    when_ready: Hook = _hook(
        "Called in the master when the sockets listen.", "server", doc="If it raises, the server does not start."
    )
    pre_fork: Hook = _hook(
        "Called in the master just before a worker is forked.",
        "server, worker",
        doc="If it raises while the server starts, the server does not start.",
    )
    post_fork: Hook = _hook(
        "Called in the worker just after it was forked.", "server, worker", doc="If it raises, the worker cannot boot."
    )
    post_worker_init: Hook = _hook(
        "Called in the worker when it has loaded the application.",
        "worker",
        doc="If it raises, the worker cannot boot.",
    )
    worker_int: Hook = _hook("Called in the worker when it is stopped by SIGINT or SIGQUIT.", "worker")
    worker_abort: Hook = _hook("Called in the worker when it is aborted (SIGABRT), usually after `timeout`.", "worker")
    pre_exec: Hook = _hook("Called in the master just before it starts the next binary (SIGUSR2).", "server")
    pre_request: Hook = _hook(
        "Called in the worker before each request.",
        "worker, req",
        doc="If it raises, that request gets 500, and the application is not called.",
    )
    # gunicorn's hook has got more arguments over the years, and each form is still found in files.
    post_request: Hook = Section.HOOKS(
        None,
        Kind(
            parsers.hook(2, 3, 4),
            "a function (worker, req, environ, resp), of which the last one or two may be left out",
        ),
        "Called in the worker after each request.",
        "",
        doc="Called as `(worker, req, environ, resp)`; a function of 2 or 3 arguments gets the first ones.",
    )
    child_exit: Hook = _hook(
        "Called in the master when a worker has exited, and when a zygote has (age 0).", "server, worker"
    )
    worker_exit: Hook = _hook("Called in the worker just before it exits.", "server, worker")
    nworkers_changed: Hook = _hook(
        "Called in the master when the number of workers has changed.",
        "server, new_value, old_value",
        doc="The first time, `old_value` is None.",
    )
    on_exit: Hook = _hook("Called in the master just before it exits.", "server")
    ssl_context: Hook = _hook(
        "Called in the worker to make the TLS context.",
        "config, default_ssl_context_factory",
        doc="""Turns TLS on, without `certfile`, too. Returns an `ssl.SSLContext`;
            `default_ssl_context_factory()` makes the one that the other settings describe, to be adjusted; it needs
            `certfile`.""",
    )
