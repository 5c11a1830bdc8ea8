"""Commands that serve something over HTTP: `dashboard` and `metrics`."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING

import click

from hpo.commands.options import PATH, Everywhere, everywhere
from hpo.commands.speech import DONE, WRONG_INPUT, say
from hpo.dashboard.address import LOOPBACK, Address

if TYPE_CHECKING:
    from pathlib import Path


def _address(context: click.Context, parameter: click.Parameter, value: str | None) -> Address | None:  # noqa: ARG001 - click's signature
    try:
        return None if value is None else Address.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("dashboard")
@click.option("--host", default="127.0.0.1", show_default=True, help="What to listen on; others let machines in.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--writable", is_flag=True, help="Allow what creates, changes, uploads or deletes.")
@click.option(
    "--base-url", callback=_address, metavar="URL", help="Where a reverse proxy offers it: https://HOST/PATH."
)
@click.option("--password-file", type=PATH, help="What to ask for; else a random password, kept in the output folder.")
@everywhere
@click.pass_obj
def dashboard(
    everywhere: Everywhere,
    /,
    host: str,
    port: int,
    base_url: Address | None,
    password_file: Path | None,
    *,
    writable: bool,
) -> int:
    """
    Serve optuna-dashboard behind a password, read-only, on this machine alone.

    The password is the line in --password-file or in the file that MAMMOGRAPHY_DASHBOARD_PASSWORD_FILE names, else
    MAMMOGRAPHY_DASHBOARD_PASSWORD, else a random one in a file that only you can read. On a terminal a link is printed that opens
    the dashboard without it, once.
    """
    from hpo.dashboard.front_end import FrontEndError
    from hpo.dashboard.password import PasswordError, choose_password
    from hpo.dashboard.serving import serve
    from hpo.settings import dashboard_password
    from storage.artifact_store import open_artifacts

    said, settings = dashboard_password(), everywhere.settings()
    try:
        password = choose_password(password_file or said.file, said.secret, settings.outputs / ".dashboard-password")
    except PasswordError as error:
        return say(error, WRONG_INPUT)
    tree, storage = everywhere.open("dashboard")
    try:
        server = serve(
            storage,
            tree,
            password=password.secret,
            artifacts=open_artifacts(settings.artifacts),
            host=host,
            port=port,
            writable=writable,
            address=base_url,
        )
    except FrontEndError as error:
        return say(error, WRONG_INPUT)
    _warn(host, base_url, password.warning, writable=writable)
    # A link that opens without the password is for the person at the terminal, not for a log.
    click.echo(f"dashboard: {server.url_with_token if sys.stdout.isatty() else server.url}")
    click.echo(f"password:  in {password.file or 'the environment'}; Ctrl-C ends it")
    # The first process of a container gets no SIGTERM that it has not asked for.
    signal.signal(signal.SIGTERM, lambda *_: server.close())
    server.run()
    return DONE


def _warn(host: str, address: Address | None, password_warning: str | None, *, writable: bool) -> None:
    """Say on standard error what a person may not have meant."""
    if password_warning is not None:
        click.echo(password_warning, err=True)
    if host not in LOOPBACK:
        click.echo(
            f"{host} lets other machines in, and to them password and pages travel unencrypted: let only a reverse proxy with"
            " TLS reach it (--base-url), or stay on 127.0.0.1 and use an SSH tunnel",
            err=True,
        )
    if address is not None and not address.encrypted:
        click.echo(f"{address.url} is no https: password and pages travel unencrypted", err=True)
    if writable:
        click.echo("who has the password can change and delete studies", err=True)


@click.command("metrics")
@click.argument("name")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=9108, show_default=True)
@everywhere
@click.pass_obj
def metrics(everywhere: Everywhere, /, name: str, host: str, port: int) -> int:
    """Serve the numbers of study NAME to Prometheus, on this machine alone."""
    from hpo.metrics import serve, url

    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    _, found = everywhere.study(name, "metrics")
    server = serve(found, host=host, port=port)
    if host not in LOOPBACK:
        click.echo(f"{host} lets other machines in, and nothing asks them for a password", err=True)
    click.echo(f"metrics: {url(server)}")
    stop.wait()
    server.shutdown()
    server.server_close()
    return DONE
