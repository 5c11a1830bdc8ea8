"""The group `db`: which database is used, and the private PostgreSQL server under the output folder."""

from __future__ import annotations

import click

from hpo.commands.options import Everywhere, everywhere
from hpo.commands.speech import DONE, FAILED
from hpo.settings import Settings


@click.group("db", no_args_is_help=False)
@everywhere
def db() -> None:
    """Which database is used; and the private PostgreSQL server under the output folder."""


def _of_the_private_server(everywhere: Everywhere) -> Settings:
    """Return the settings. Where other commands use another database, say so: in the compose stack's folder, they do."""
    from storage.compose_stack import PRIVATE
    from storage.database import display, parse_url

    settings = everywhere.settings()
    if settings.database is not None:
        used = display(parse_url(settings.database))
        click.echo(f"mammography: commands here use {used}, and this server only with --database {PRIVATE}", err=True)
    return settings


@db.command("start")
@everywhere
@click.pass_obj
def db_start(everywhere: Everywhere, /) -> int:
    """Start the private server; every command that needs it does so by itself."""
    from storage.private_server import PrivateServer

    server = PrivateServer(_of_the_private_server(everywhere).outputs)
    server.start()
    click.echo(f"running, in {server.folder}")
    return DONE


@db.command("stop")
@everywhere
@click.pass_obj
def db_stop(everywhere: Everywhere, /) -> int:
    """Stop the private server."""
    from storage.private_server import PrivateServer

    PrivateServer(_of_the_private_server(everywhere).outputs).stop()
    click.echo("stopped")
    return DONE


@db.command("status")
@everywhere
@click.pass_obj
def db_status(everywhere: Everywhere, /) -> int:
    """Say which database is used and whether it answers."""
    from storage.compose_stack import is_of_stack
    from storage.database import check, display, open_database, parse_url
    from storage.private_server import PrivateServer

    settings = everywhere.settings()
    if settings.database is None:
        server = PrivateServer(settings.outputs)
        if not server.running():
            click.echo("private server: not running")
            return FAILED
        url = server.url
    else:
        url = parse_url(settings.database)
    check(open_database(url, application_name="mammography db"))
    whose = ", of the compose stack" if is_of_stack(url) else ""
    click.echo(f"{display(url)}{whose}: running")
    return DONE


@db.command("url")
@click.option("--show-password", is_flag=True, help="Do not hide it.")
@everywhere
@click.pass_obj
def db_url(everywhere: Everywhere, /, *, show_password: bool) -> int:
    """Print the URL of the database, for other programs; one that names a passfile works without the password in it."""
    from storage.database import choose, with_password, without_password

    settings = everywhere.settings()
    url = choose(settings.database, settings.outputs)
    click.echo(with_password(url) if show_password else without_password(url))
    return DONE
