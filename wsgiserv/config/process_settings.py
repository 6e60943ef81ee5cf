"""The settings of the processes themselves: environment, privileges, logs, TLS files, development.

Owns: their declarations, in the sections Process, Logging, TLS, Development and checks.
Must not know: where values come from, what the rest of wsgiserv does with them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from wsgiserv.config import values as parsers
from wsgiserv.config.hooks import HookSettings
from wsgiserv.config.setting import setting

__all__ = ["ProcessSettings"]

_SWITCH = "True or False"
_FILE = "a path"
_SECONDS = (
    "a duration of 0 or more in seconds, at most 366 days, or text such as '500ms' or '2m'; for example 30"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ProcessSettings(HookSettings):
    """The part of `Settings` that is about processes, logs and files."""

    # Process
    chdir: str = setting(
        ".",
        section="Process",
        flags=("--chdir",),
        metavar="DIR",
        parse=parsers.text,
        accepts="a directory that exists",
        help="Change to this directory before anything else is opened.",
        doc=(
            "Relative paths of other settings (pidfile, logs, certificates, Unix sockets) start here, and it "
            "is importable. The configuration file itself is looked for where the command was typed. "
            "Where the name is a link, each worker that starts follows it anew, and so do SIGHUP and SIGUSR2."
        ),
        show_default="where the command is typed",
    )
    pythonpath: str | None = setting(
        None,
        section="Process",
        flags=("--pythonpath",),
        metavar="DIRS",
        parse=parsers.text_or_none,
        accepts="directories, separated by commas",
        help="Directories to import from, separated by commas.",
    )
    raw_env: tuple[str, ...] = setting(
        (),
        section="Process",
        flags=("-e", "--env"),
        takes="values",
        metavar="KEY=VALUE",
        parse=parsers.environment_pairs,
        accepts="KEY=VALUE, or a list of such; for example 'DEBUG=0'",
        help="Set an environment variable for the application; may be repeated.",
    )
    daemon: bool = setting(
        False,
        section="Process",
        flags=("-D", "--daemon"),
        takes="nothing",
        parse=parsers.boolean,
        accepts=_SWITCH,
        help="Run in the background, detached from the terminal.",
        doc="Not under systemd or supervisor, which want the process in the foreground.",
    )
    pidfile: str | None = setting(
        None,
        section="Process",
        flags=("-p", "--pid"),
        metavar="FILE",
        parse=parsers.path,
        accepts=_FILE,
        help="Write the master's process id to this file.",
    )
    control_socket: str | None = setting(
        None,
        section="Process",
        flags=("--control-socket",),
        metavar="FILE",
        parse=parsers.path_or_off,
        accepts="a path, or 'off' for none",
        help="The Unix socket for wsgiservctl; 'off' for none.",
        doc=(
            "By default `PID.sock`, after the master, in the first of these directories that can be had: "
            "`$RUNTIME_DIRECTORY` (systemd's `RuntimeDirectory=`), `$XDG_RUNTIME_DIR/wsgiserv`, `/run/wsgiserv` for "
            "root, `/tmp/wsgiserv-UID`; `wsgiservctl` looks there. It has mode 0600, and only the server's user and "
            "root are answered. Where there cannot be one, the server runs without it and says so in the log. A path "
            "that is set here and cannot be used (its directory does not exist) ends the start with status 2. Takes "
            "effect at a restart or an upgrade."
        ),
        show_default="in the runtime directory",
    )
    control_socket_disable: bool = setting(
        False,
        section="Process",
        flags=("--no-control-socket",),
        takes="nothing",
        parse=parsers.boolean,
        accepts=_SWITCH,
        help="Have no control socket, whatever `control_socket` says.",
    )
    user: int = setting(
        os.geteuid(),
        section="Process",
        flags=("-u", "--user"),
        metavar="USER",
        parse=parsers.user,
        accepts="the name or the number of a user of this host",
        help="Run the workers as this user.",
        doc=(
            "Only root can: the master stays root, opens the logs and hands them on. The workers get the user's "
            "groups, `HOME`, `USER` and `LOGNAME` (unless `raw_env` sets them). A server whose workers run as root "
            "warns once at its start; `user = 'root'` says that it is meant."
        ),
        show_default="the user who starts it",
    )
    group: int = setting(
        os.getegid(),
        section="Process",
        flags=("-g", "--group"),
        metavar="GROUP",
        parse=parsers.group,
        accepts="the name or the number of a group of this host",
        help="Run the workers as this group.",
        show_default="the primary group of `user`",
    )
    initgroups: bool = setting(
        True,
        section="Process",
        flags=("--initgroups",),
        takes="nothing",
        parse=parsers.boolean,
        accepts=_SWITCH,
        help="Give the workers all the groups that `user` belongs to.",
        doc="With `--no-initgroups` they are in `group` alone.",
    )
    umask: int = setting(
        0,
        section="Process",
        flags=("-m", "--umask"),
        metavar="MODE",
        parse=parsers.mode,
        accepts="a file mode mask: in text octal, as of umask(1), for example 027; in a Python file 0o027",
        help="The file mode mask of the workers, of log files and Unix sockets; octal.",
        doc=(
            "Text is octal, as of umask(1): `--umask 77` is `0o77` (gunicorn reads 77 as decimal). A number in a "
            "configuration file is the mask itself: write `umask = 0o77`. 0 leaves the mask that the server was "
            "started with, but for Unix sockets, whose mode is 0777 then."
        ),
    )
    preload_app: bool = setting(
        False,
        section="Process",
        flags=("--preload",),
        takes="nothing",
        parse=parsers.boolean,
        accepts=_SWITCH,
        help="Load the application once, before the workers are forked.",
        doc="Workers start faster and share memory; `HUP` loads it anew. [Preloading](preload.md).",
    )
    sendfile: bool = setting(
        True,
        section="Process",
        flags=("--sendfile",),
        takes="nothing",
        parse=parsers.boolean,
        accepts=_SWITCH,
        environment="SENDFILE",
        help="Send files with the kernel's sendfile.",
    )
    proc_name: str | None = setting(
        None,
        section="Process",
        flags=("-n", "--name"),
        metavar="NAME",
        parse=parsers.text_or_none,
        accepts="a text",
        help="The name in the processes' titles.",
        show_default="the application",
    )
    default_proc_name: str = setting(
        "wsgiserv",
        section="Process",
        parse=parsers.text,
        accepts="a text",
        help="The name in the processes' titles when `proc_name` is not set.",
        show_default="the application",
    )

    # Logging
    errorlog: str = setting(
        "-",
        section="Logging",
        flags=("--error-logfile", "--log-file"),
        old_names=("logfile",),
        metavar="FILE",
        parse=lambda raw: parsers.path(raw) or "-",
        accepts="a path, or '-' for the standard error",
        help="The error log; '-' is the standard error.",
    )
    loglevel: str = setting(
        "info",
        section="Logging",
        flags=("--log-level",),
        metavar="LEVEL",
        parse=parsers.log_level,
        accepts="'debug', 'info', 'warning', 'error' or 'critical'",
        choices=("debug", "info", "warning", "error", "critical"),
        help="The least severe messages that go to the error log.",
    )
    accesslog: str | None = setting(
        None,
        section="Logging",
        flags=("--access-logfile",),
        metavar="FILE",
        parse=parsers.path,
        accepts="a path, or '-' for the standard output",
        help="The access log; '-' is the standard output.",
        show_default="off",
    )
    access_log_format: str = setting(
        "combined",
        section="Logging",
        flags=("--access-logformat",),
        metavar="FORMAT",
        parse=parsers.text,
        accepts="'common', 'combined', 'json', or a format such as '%(h)s %(t)s \"%(r)s\" %(s)s %(b)s'",
        help="'common', 'combined', 'json', or a format of atoms such as %(h)s.",
        doc="The atoms are gunicorn's. `combined` is the format that gunicorn has by default. "
        "In a format that begins with `{` the values are escaped as JSON.",
    )
    logconfig: str | None = setting(
        None,
        section="Logging",
        flags=("--log-config",),
        metavar="FILE",
        parse=parsers.path,
        accepts=_FILE,
        help="A logging configuration file in the format of `logging.config`.",
    )
    logconfig_dict: dict[str, Any] = setting(
        {},
        section="Logging",
        parse=parsers.mapping,
        accepts="a dictionary",
        help="A logging configuration as a dictionary, for `logging.config.dictConfig`.",
    )
    logconfig_json: str | None = setting(
        None,
        section="Logging",
        flags=("--log-config-json",),
        metavar="FILE",
        parse=parsers.path,
        accepts=_FILE,
        help="A file with `logconfig_dict` in JSON.",
    )
    capture_output: bool = setting(
        False,
        section="Logging",
        flags=("--capture-output",),
        takes="nothing",
        parse=parsers.boolean,
        accepts=_SWITCH,
        help="Send what the application prints to the error log.",
    )

    # TLS
    certfile: str | None = setting(
        None,
        section="TLS",
        flags=("--certfile",),
        metavar="FILE",
        parse=parsers.path,
        accepts=_FILE,
        help="The certificate, and its chain, in PEM; turns TLS on.",
    )
    keyfile: str | None = setting(
        None,
        section="TLS",
        flags=("--keyfile",),
        metavar="FILE",
        parse=parsers.path,
        accepts=_FILE,
        help="The certificate's private key in PEM.",
        show_default="in certfile",
    )
    sni_certificates: dict[str, tuple[str, str | None]] = setting(
        {},
        section="TLS",
        flags=("--sni-certificate",),
        takes="values",
        metavar="NAME=FILES",
        parse=parsers.sni_certificates,
        accepts="host names with a certificate and its key, as 'shop.example=shop.pem,shop.key'",
        help="A certificate for clients that ask for this name (SNI).",
        doc=(
            "Clients that name another host, or none, get `certfile`. `*.shop.example` stands for one label. A "
            "dictionary in a configuration file: `{'shop.example': ('shop.pem', 'shop.key')}`; the key may be in "
            "the certificate's file."
        ),
        show_default="none",
    )
    ca_certs: str | None = setting(
        None,
        section="TLS",
        flags=("--ca-certs",),
        metavar="FILE",
        parse=parsers.path,
        accepts=_FILE,
        help="The authorities that clients' certificates must come from, in PEM.",
    )
    cert_reqs: int = setting(
        0,
        section="TLS",
        flags=("--cert-reqs",),
        metavar="N",
        parse=parsers.integer(0, 2),
        accepts="0 (none), 1 (optional) or 2 (required), as in ssl.VerifyMode",
        help="Ask clients for a certificate: 0 no, 1 optional, 2 required.",
    )
    ciphers: str | None = setting(
        None,
        section="TLS",
        flags=("--ciphers",),
        metavar="LIST",
        parse=parsers.text_or_none,
        accepts="a list of ciphers in OpenSSL's notation",
        help="The ciphers for TLS 1.2, in OpenSSL's notation.",
        show_default="Python's",
    )
    tls_linger: float = setting(
        5.0,
        section="TLS",
        flags=("--tls-linger",),
        metavar="SECONDS",
        parse=parsers.duration,
        accepts=_SECONDS,
        help="How long a leaving worker keeps idle TLS connections; 0 closes them at once.",
        doc=(
            "A TLS connection cannot be moved to another worker. A worker that leaves (reload, recycling, fewer "
            "workers, upgrade) keeps the idle ones for this long, at most `graceful_timeout`, answers the next request "
            "of each with `Connection: close`, and ends as soon as all are gone. Its successor serves meanwhile. When "
            "the whole server stops they are closed at once. The same holds for other connections that cannot be moved."
        ),
    )

    # Development and checks
    reload: bool = setting(
        False,
        section="Development and checks",
        flags=("--reload",),
        takes="nothing",
        parse=parsers.boolean,
        accepts=_SWITCH,
        help="Restart the workers when the code changes; for development.",
    )
    reload_engine: Literal["auto", "poll", "watchfiles"] = setting(
        "auto",
        section="Development and checks",
        flags=("--reload-engine",),
        metavar="NAME",
        parse=parsers.reload_engine,
        accepts="'auto', 'poll' or 'watchfiles'",
        choices=("auto", "poll", "watchfiles"),
        help="How changes are seen: 'auto', 'poll' or 'watchfiles'.",
        doc="`auto` is watchfiles where that package is installed. gunicorn's `inotify` is taken as `auto`.",
    )
    reload_extra_files: tuple[str, ...] = setting(
        (),
        section="Development and checks",
        flags=("--reload-extra-file",),
        takes="values",
        metavar="FILE",
        parse=parsers.files,
        accepts="a file that exists, a pattern such as 'templates/**/*.html', or a list of these",
        help="Also restart when this file or pattern changes; may be repeated.",
    )
    check_config: bool = setting(
        False,
        section="Development and checks",
        flags=("--check-config",),
        takes="nothing",
        parse=parsers.boolean,
        accepts=_SWITCH,
        help="Check the configuration and load the application, then exit.",
        doc=(
            "Finds what would stop the start (logs, pid file, directories, addresses, users, certificates, the "
            "application, `warmup`), prints each problem on a line, and exits with the status that the start would end "
            "with. Everything happens in a child process; nothing listens, and no file is made or emptied. Hooks are "
            "not called, except `ssl_context`. An address, socket or pid file that a running server has is no problem: "
            "that server can be reloaded. When all is good it prints what it has found: the configuration file, the "
            "application, the worker class, the addresses."
        ),
    )
    print_config: bool = setting(
        False,
        section="Development and checks",
        flags=("--print-config",),
        takes="nothing",
        parse=parsers.boolean,
        accepts=_SWITCH,
        help="Print every setting and where it came from, then exit.",
    )
