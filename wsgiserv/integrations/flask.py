"""``flask serve``: serves an application as ``flask run`` does, by this server.

Every ``flask`` command imports this module (entry point ``flask.commands``), so it imports the server when it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import click
from flask.cli import NoAppException, pass_script_info
from flask.helpers import get_debug_flag

if TYPE_CHECKING:
    from flask.cli import ScriptInfo

_OWN: Final = ("host", "port", "debugger", "with_threads")


class _Serve(click.Command):
    """The command, with the server's flags as further options, when it is used."""

    _is_complete = False

    def _complete(self) -> None:
        if self._is_complete:
            return
        self._is_complete = True
        from wsgiserv.integrations.command import flag_settings

        taken = {flag for option in self.params for flag in (*option.opts, *option.secondary_opts)}
        self.params += [_option(setting, taken) for setting in flag_settings()]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all parameters."""
        self._complete()
        return super().get_params(ctx)


def _option(setting: Any, taken: set[str]) -> click.Option:
    from wsgiserv.config.present import default_text

    flags = [flag for flag in (*setting.flags, *setting.hidden_flags) if flag not in taken]
    words: dict[str, Any] = {"default": None, "help": f"{setting.help} [{default_text(setting)}]"}
    arity = setting.kind.arity
    if arity == "none":
        return click.Option(["/".join([*flags[-1:], *setting.off_flags[-1:]]), setting.name, *flags[:-1]], **words)
    words.update(type=str, metavar=setting.metavar.strip("[]") or "TEXT", multiple=arity == "many")
    if arity == "optional":
        words.update(is_flag=False, flag_value="")
    return click.Option([*flags, setting.name], **words)


@click.command("serve", cls=_Serve, short_help="Run the application with wsgiserv.")
@click.option("--host", "-h", default=None, help="The interface to bind to. [127.0.0.1]")
@click.option("--port", "-p", type=int, default=None, help="The port to bind to. [5000]")
@click.option("--debugger/--no-debugger", default=None, help="Show Werkzeug's debugger. [with --debug]")
@click.option("--with-threads/--without-threads", default=True, help="Serve requests in threads. [on]")
@pass_script_info
def serve(info: ScriptInfo, /, **options: Any) -> None:
    """Run the application with wsgiserv, as `flask run` does with Flask's development server.

    With --debug code is reloaded, and the debugger shows errors. All flags of wsgiserv are accepted. With --debug the
    defaults are one worker, the class threads and no timeout. A configuration file is read only with --config.
    """
    from wsgiserv.errors import ConfigError
    from wsgiserv.integrations import command

    debug = get_debug_flag()
    if command.is_loading():
        command.hand_over(_application(info, debug if options["debugger"] is None else options["debugger"]))
    name = info.app_import_path or "app"
    click.echo(f" * Serving Flask app '{name}'\n * Debug mode: {'on' if debug else 'off'}")
    banner = " * Running on {url}\nPress CTRL+C to quit"
    try:
        command.serve(f"flask serve ({name})", _defaults(options, debug), _flags(options), banner)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def _application(info: ScriptInfo, has_debugger: bool) -> Callable[..., Any]:
    from wsgiserv.integrations import command

    try:
        app = info.load_app()
    except NoAppException as error:
        command.cannot_serve(error.format_message())
    if not has_debugger:
        return app
    from werkzeug.debug import DebuggedApplication

    # What is typed into the console runs in the frames of one process.
    is_single = command.server_settings().workers == 1
    debugged = DebuggedApplication(app, evalex=is_single)
    if is_single and not command.is_later():
        click.echo(f" * Debugger is active!\n * Debugger PIN: {debugged.pin}", err=True)
    return debugged


def _defaults(options: dict[str, Any], debug: bool) -> dict[str, Any]:
    from wsgiserv.integrations.command import developers_defaults

    values: dict[str, Any] = {"bind": [_address(options)], "accesslog": "-"}
    values["access_log_format"] = '%(h)s - - %(t)s "%(r)s" %(s)s %(B)s'
    given = {name for name, value in options.items() if value is not None and value != ()}
    values.update(developers_defaults(debug, options["with_threads"], given))
    return values


def _address(options: dict[str, Any]) -> str:
    host = options["host"] or "127.0.0.1"
    port = 5000 if options["port"] is None else options["port"]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _flags(options: dict[str, Any]) -> Iterator[str]:
    from wsgiserv.integrations.command import as_flags

    if options["host"] is not None or options["port"] is not None:
        yield f"--bind={_address(options)}"
    for name, value in options.items():
        if name not in _OWN and value is not None and value != ():
            yield from as_flags(name, True if value == "" else value)
