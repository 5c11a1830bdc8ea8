"""The command `study status`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from hpo.commands.options import PATIENCE_S, Everywhere, everywhere
from hpo.commands.speech import DONE, stdout

if TYPE_CHECKING:
    from hpo.status import Status
    from hpo.study import Study

_EVERY_S = 2.0


@click.command("status")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --watch one a line, at every change.")
@click.option("--watch", is_flag=True, help="Look again every two seconds, until the study is over or Ctrl-C.")
@everywhere
@click.pass_obj
def study_status(everywhere: Everywhere, /, name: str, *, as_json: bool, watch: bool) -> int:
    """Say how far study NAME is and who works on it."""
    from hpo.status import status
    from hpo.tables import status_view

    _, found = everywhere.study(name, "study")
    if watch:
        return _watch(found, as_json=as_json)
    now = status(found)
    if as_json:
        click.echo(now.model_dump_json(indent=2))
    else:
        stdout().print(status_view(now, datetime.now(UTC)))
    return DONE


def _watch(found: Study, *, as_json: bool) -> int:
    """Show how far the study is until it is over; a database that is away is waited for."""
    from hpo.status import is_over, status
    from storage.patience import Patience

    patience = Patience(PATIENCE_S)
    with _watching(as_json=as_json) as show:
        while True:
            show(now := patience.call(status, found))
            if is_over(now):
                return DONE
            time.sleep(_EVERY_S)


@contextmanager
def _watching(*, as_json: bool) -> Iterator[Callable[[Status], None]]:
    """Give a function that shows a status: in a table on a terminal, in a line at every change elsewhere."""
    from hpo.live import at_changes, live_status
    from hpo.status import events
    from hpo.tables import status_line

    if as_json:
        yield at_changes(lambda status: click.echo(status.model_dump_json()), events)
    else:
        with live_status(stdout(), lambda status: click.echo(status_line(status))) as show:
            yield show
