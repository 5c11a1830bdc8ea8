"""Commands that change a study while it runs: `study enqueue`, `extend`, `stop` and `delete`."""

from __future__ import annotations

import functools
import math
from datetime import UTC, datetime
from typing import Any

import click

from hpo.commands.options import Everywhere, everywhere
from hpo.commands.speech import DONE, WRONG_INPUT, say

_MOST_TRIALS = 1_000_000
_MOST_HOURS = 1_000_000
_STILL = {
    "spent": "another of its limits is reached",
    "exhausted": "every configuration of its space was tried",
    "stopped": "somebody has stopped it again",
}
"""Why nothing begins in a study that has just been given more to do."""


def _hours(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Return the hours; click itself lets NaN pass every range."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("expected a number of hours", context, parameter)
    return value


def _moment(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """Return the moment that is written, which has a zone and lies in the future."""
    if value is None:
        return None
    expected = "expected a moment with its zone, such as 2027-01-31T08:00+01:00"
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no moment: {expected}", context, parameter) from error
    if moment.tzinfo is None:
        raise click.BadParameter(f"{value!r} has no zone: {expected}", context, parameter)
    if moment <= datetime.now(UTC):
        raise click.BadParameter(f"{value!r} is over: expected a moment in the future", context, parameter)
    return moment


_more_hours = functools.partial(
    click.option, type=click.FloatRange(0, _MOST_HOURS, min_open=True), callback=_hours, metavar="+H"
)


@click.command("enqueue")
@click.argument("name")
@click.argument("assignments", metavar="FIELD=VALUE ...", nargs=-1, required=True)
@everywhere
@click.pass_obj
def study_enqueue(everywhere: Everywhere, /, name: str, assignments: tuple[str, ...]) -> int:
    """Let a configuration be tried next in study NAME; what is left open the sampler chooses. Prints its trial's number."""
    from hpo import steering
    from hpo.status import status

    _, found = everywhere.study(name, "study")
    number = steering.enqueue(found, assignments)
    click.echo(number)
    now = status(found)
    begun, queued = now.trials["running"], now.trials["waiting"]
    if now.budget.ended is not None or (now.budget.left is not None and begun + queued > now.budget.left):
        say(f"trial {number} will not be tried unless `study extend` gives study {name!r} more to do", DONE)
    return DONE


@click.command("extend")
@click.argument("name")
@click.option("--trials", type=click.IntRange(1, _MOST_TRIALS), metavar="+N", help="So many trials more.")
@_more_hours("--hours", help="So many hours more.")
@_more_hours("--gpu-hours", help="So many GPU-hours more.")
@click.option("--deadline", callback=_moment, metavar="MOMENT", help="A later one: 2027-01-31T08:00+01:00.")
@everywhere
@click.pass_obj
def study_extend(everywhere: Everywhere, /, name: str, **more: Any) -> int:
    """Give study NAME more to do, of what it has a limit of; one that was stopped goes on, also with nothing more."""
    from hpo import steering
    from hpo.plateau import plateaued
    from hpo.tables import budget_line

    _, found = everywhere.study(name, "study")
    if all(each is None for each in more.values()) and steering.budget(found).stop_reason is None:
        raise click.UsageError("expected at least one of --trials, --hours, --gpu-hours and --deadline")
    budget = steering.extend(found, **more)
    click.echo(f"{name}: {budget_line(budget)}")
    plateau = found.file.budget.plateau
    if budget.ended is not None:
        say(f"still nothing begins in study {name!r}: {_STILL[budget.ended]}", DONE)
    elif plateau is not None and plateaued(found.trials, plateau):
        say(f"study {name!r} stops again unless its next trial is better: the last {plateau} were not", DONE)
    return DONE


@click.command("stop")
@click.argument("name")
@everywhere
@click.pass_obj
def study_stop(everywhere: Everywhere, /, name: str) -> int:
    """Let no trial begin any more in study NAME; those that have begun are finished, and the workers leave."""
    from hpo import steering
    from hpo.status import status

    _, found = everywhere.study(name, "study")
    steering.stop(found)
    begun = status(found).trials["running"]
    first = f"finish the {begun} under way and " if begun else ""
    click.echo(f"{name}: no trial begins any more; workers {first}leave; `study extend` lets it go on")
    return DONE


@click.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do it; nothing brings it back.")
@everywhere
@click.pass_obj
def study_delete(everywhere: Everywhere, /, name: str, *, yes: bool) -> int:
    """Remove study NAME from the database, its artifacts, and its output folder. Decoded data stay."""
    from hpo import steering
    from storage.artifact_store import open_artifacts

    _, found = everywhere.study(name, "study")
    count, folder = len(found.trials), found.folder.path
    if not yes:
        files = f"the link {folder}" if folder.is_symlink() else f"the folder {folder}"
        return say(f"study {name!r}: --yes would remove its {count} trials from the database, and {files}", WRONG_INPUT)
    left = steering.delete(found, open_artifacts(everywhere.settings().artifacts))
    click.echo(f"{name}: removed, {count} trials and {folder}")
    if left is not None:
        say(f"artifacts of study {name!r} may be left: {left}", DONE)
    return DONE
