"""The group `study`: here what makes studies and lists them, beside it what looks at one and what steers it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.commands.options import PATH, Everywhere, data_places, everywhere
from hpo.commands.results import study_best, study_importance, study_report, study_trials
from hpo.commands.speech import DONE, stderr, stdout
from hpo.commands.steering import study_delete, study_enqueue, study_extend, study_stop
from hpo.commands.watching import study_status

if TYPE_CHECKING:
    from hpo.study_file import StudyFile
    from trainer.protocols import StopSignal


@click.group("study", no_args_is_help=False)
@everywhere
def study() -> None:
    """Create studies, look at them, and change what they do next."""


_LOOKING = (study_status, study_best, study_trials, study_importance, study_report)
_STEERING = (study_enqueue, study_extend, study_stop, study_delete)
for command in (*_LOOKING, *_STEERING):
    study.add_command(command)


@study.command("create")
@click.argument("file", type=PATH)
@click.option("--name", help="Name, if not the one in the file.")
@click.option("--trials", type=click.IntRange(min=1), help="Budget, if not the one in the file.")
@click.option(
    "--from", "source", metavar="STUDY", help="Take over the trials of another study, else its best configurations."
)
@click.option("--dry-run", is_flag=True, help="Say what the study is and what it would cost; nothing is created.")
@data_places
@everywhere
@click.pass_obj
def study_create(
    everywhere: Everywhere,
    /,
    file: Path,
    name: str | None,
    trials: int | None,
    source: str | None,
    csv: Path | None,
    dicom_root: Path | None,
    *,
    dry_run: bool,
) -> int:
    """Create the study in FILE: decode its data, fix its folds, write it down."""
    from hpo.signals import stop_on_signal

    if dry_run and source is not None:
        raise click.UsageError("--dry-run opens no database: it cannot look at the study of --from")
    stop = stop_on_signal()  # before a library starts threads of its own
    from hpo import study as studies
    from hpo.live import opening_progress
    from hpo.study import DataPlace
    from hpo.study_file import read_study_file

    checked = read_study_file(file, overrides=_overrides(name, trials, csv, dicom_root))
    if dry_run:
        return _say_cost(checked, everywhere.settings().outputs, stop)
    tree, storage = everywhere.open("study")
    older = None if source is None else studies.load(source, tree, storage)
    place = DataPlace.choose(checked, tree, csv=None, dicom_root=None, stop=stop)
    place.check()
    from hpo.creation import create  # loads torch: only where nothing is wrong so far

    with opening_progress(stderr()) as progress:
        created = create(checked, place, tree, storage, progress, older)
    click.echo(f"{created.name}: {created.file.budget.in_words()}, {created.file.cv.folds} folds a trial")
    click.echo(str(created.folder.path))
    return DONE


def _say_cost(file: StudyFile, outputs: Path, stop: StopSignal) -> int:
    """Say what the study in *file* is and, as far as its data are here, what it would cost."""
    from hpo import estimate
    from hpo.errors import NoDataPlaceError
    from hpo.live import opening_progress
    from hpo.study import DataPlace
    from storage.tree import OutputTree, check_study_name

    check_study_name(file.study)
    stdout().print(*estimate.describe(file), sep="\n", highlight=False)
    try:
        place = DataPlace.choose(file, OutputTree(outputs), csv=None, dicom_root=None, stop=stop)
    except NoDataPlaceError as error:
        click.echo(f"what it would cost is measured on its data: {error}")
        return DONE
    place.check()
    with opening_progress(stderr()) as progress:
        found = estimate.estimate(file, place, stop=stop, progress=progress)
    stdout().print(*estimate.cost_tables(found), sep="\n", highlight=False)
    return DONE


def _overrides(name: str | None, trials: int | None, csv: Path | None, dicom_root: Path | None) -> dict[str, Any]:
    """Return what is said on the command line in place of what stands in the file, by its sections."""
    overrides: dict[str, Any] = {}
    if name is not None:
        overrides["study"] = name
    if trials is not None:
        overrides["budget"] = {"trials": trials}
    places = {key: place.absolute() for key, place in (("csv", csv), ("dicom_root", dicom_root)) if place is not None}
    if places:
        overrides["data"] = places
    return overrides


@study.command("list")
@everywhere
@click.pass_obj
def study_list(everywhere: Everywhere, /) -> int:
    """List the studies, the oldest first."""
    from storage import ledger

    _, storage = everywhere.open("study")
    for name in ledger.study_names(storage.engine):
        click.echo(name)
    return DONE
