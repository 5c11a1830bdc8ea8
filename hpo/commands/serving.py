"""Commands that serve something over HTTP: `dashboard` and `metrics`."""

from __future__ import annotations

import signal
import sys
import threading

import click

from hpo.commands.options import Everywhere, everywhere
from hpo.commands.speech import DONE

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@click.command("dashboard")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--writable", is_flag=True, help="Allow what creates, changes or deletes.")
@everywhere
@click.pass_obj
def dashboard(everywhere: Everywhere, /, host: str, port: int, *, writable: bool) -> int:
    """Serve optuna-dashboard behind a password, read-only, on this machine alone."""
    from hpo.dashboard import kept_password, serve

    tree, storage = everywhere.open("dashboard")
    password_file = tree.root / ".dashboard-password"
    server = serve(storage.optuna, host=host, port=port, writable=writable, password=kept_password(password_file))
    if host not in _LOOPBACK:
        click.echo(f"{host} lets other machines in, and the password travels in plain HTTP", err=True)
    # A link that opens without the password is for the person at the terminal, not for a log.
    click.echo(f"dashboard: {server.url_with_token if sys.stdout.isatty() else server.url}")
    click.echo(f"password:  in {password_file}; Ctrl-C ends it")
    server.run()
    return DONE


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
    if host not in _LOOPBACK:
        click.echo(f"{host} lets other machines in, and nothing asks them for a password", err=True)
    click.echo(f"metrics: {url(server)}")
    stop.wait()
    server.shutdown()
    server.server_close()
    return DONE
