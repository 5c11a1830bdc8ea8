"""Commands that search, `worker`, `launch` and `demo`, and `replay`, which searches nothing and trains as they do."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import click

from hpo.commands.options import PATIENCE_S, Everywhere, data_places, everywhere, patient
from hpo.commands.speech import DONE, FAILED, on_purpose, plain, say, stderr, stdout


@click.command("worker")
@click.argument("name")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads of a step [all cores].")
@click.option(
    "--per-gpu", type=click.IntRange(min=1), default=1, show_default=True, help="Workers that share this one's GPU."
)
@patient
@data_places
@everywhere
@click.pass_obj
def worker(
    everywhere: Everywhere,
    /,
    name: str,
    device: str,
    threads: int | None,
    per_gpu: int,
    patience: float,
    csv: Path | None,
    dicom_root: Path | None,
) -> int:
    """Work on study NAME in this process until its budget is spent."""
    from hpo.signals import Leave, stop_on_signal

    _check_device(device)
    leave = Leave(within_s=7.0)
    stop = stop_on_signal(leave)  # before a library starts threads of its own
    from storage.artifact_store import open_artifacts

    tree, found = everywhere.study(name, "worker")
    store = open_artifacts(everywhere.settings().artifacts)
    from hpo.gallery import Gallery
    from hpo.objective import Training  # loads torch: only for a study that exists
    from hpo.station import set_up_station
    from hpo.worker import Worker
    from storage.patience import Patience
    from trainer.errors import StopRequestedError

    try:
        station = set_up_station(
            found,
            tree,
            device=device,
            per_gpu=per_gpu,
            threads=threads,
            patience=Patience(patience, stop),
            stop=stop,
            csv=csv,
            dicom_root=dicom_root,
        )
    except StopRequestedError as error:
        return say(error, DONE)
    training = Training(station, Gallery.open(station, store))
    at_work = Worker(station.claims, training, stop, alone=per_gpu == 1)
    leave.last_act = at_work.give_back
    try:
        why = at_work.run()
    except on_purpose() as error:
        return say(plain(error), FAILED)
    logging.getLogger(__name__).info("worker ends: %s", why or "asked to stop", extra={"action": "worker_ends"})
    return DONE


def _check_device(device: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise click.BadParameter(f"{device!r} is none of auto, cpu, cuda and cuda:N", param_hint="--device")


@click.command("replay")
@click.argument("name")
@click.argument("number", type=click.IntRange(min=0))
@click.option("--check", is_flag=True, help="Compare with what the database remembers, to the bit; 1 if it differs.")
@click.option(
    "--device", default="auto", show_default=True, help="auto (the trial's kind, if it is here), cpu, cuda or cuda:N."
)
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads of a step [as the trial had].")
@data_places
@everywhere
@click.pass_obj
def replay(
    everywhere: Everywhere,
    /,
    name: str,
    number: int,
    *,
    check: bool,
    device: str,
    threads: int | None,
    csv: Path | None,
    dicom_root: Path | None,
) -> int:
    """Train the finished trial NUMBER of study NAME again, from the database alone."""
    from hpo.signals import stop_on_signal

    _check_device(device)
    stop = stop_on_signal()  # before torch starts threads of its own
    tree, found = everywhere.study(name, "replay")
    from hpo import replay as replays  # loads torch: only for a study that exists
    from hpo.comparison import compare
    from hpo.live import opening_progress
    from hpo.study import DataPlace

    original = replays.recall(found, number)
    place = DataPlace.choose(found.file, tree, csv=csv, dicom_root=dicom_root, stop=stop)
    place.check()
    with opening_progress(stderr()) as progress:
        again = replays.replay(
            original, place, device=device, threads=threads, despite_other_data=check, stop=stop, progress=progress
        )
    if not check:
        click.echo(again.in_words())
        click.echo(str(again.folder))
        return DONE
    comparison = compare(original, again)
    click.echo("\n".join(comparison.in_words()))
    return DONE if comparison.equal else FAILED


@click.command("launch")
@click.argument("name")
@click.option(
    "--workers",
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="Worker processes; auto: one for each GPU slot, without GPUs one for every four cores.",
)
@click.option(
    "--per-gpu", type=click.IntRange(min=1), default=1, show_default=True, help="Worker processes that share a GPU."
)
@patient
@data_places
@everywhere
@click.pass_obj
def launch(
    everywhere: Everywhere,
    /,
    name: str,
    workers: str,
    per_gpu: int,
    patience: float,
    csv: Path | None,
    dicom_root: Path | None,
) -> int:
    """Start workers on study NAME, watch them, and end when its budget is spent."""
    from hpo.signals import Leave, stop_on_signal

    if workers != "auto" and not (workers.isdecimal() and int(workers) > 0):
        raise click.BadParameter(f"{workers!r} is neither a number above 0 nor auto", param_hint="--workers")
    leave = Leave()
    stop = stop_on_signal(leave)  # before a library starts threads of its own
    from hpo.launcher import launch as run_workers
    from storage.artifact_store import open_artifacts

    tree, found = everywhere.study(name, "launch")
    open_artifacts(everywhere.settings().artifacts)  # a place that is none is said once, and not by every worker
    from trainer.errors import StopRequestedError

    try:
        return run_workers(
            found,
            tree,
            everywhere.settings(),
            stderr(),
            stop=stop,
            leave=leave,
            workers=None if workers == "auto" else int(workers),
            per_gpu=per_gpu,
            patience_s=patience,
            csv=csv,
            dicom_root=dicom_root,
            log_options=everywhere.log_options,
        )
    except StopRequestedError as error:
        return say(error, DONE)


@click.command("demo")
@click.option("--trials", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--patients", type=click.IntRange(min=18), default=60, show_default=True)
@everywhere
@click.pass_obj
def demo(everywhere: Everywhere, /, trials: int, workers: int, patients: int) -> int:
    """Search over a synthetic archive, from nothing to a ranked study. No network, no GPU needed."""
    from hpo.signals import Leave, stop_on_signal

    leave = Leave()
    stop = stop_on_signal(leave)  # before a library starts threads of its own
    from hpo import demo as demonstration
    from hpo import study as studies
    from hpo.launcher import launch as run_workers
    from hpo.settings import asked_database
    from hpo.tables import ranking_table
    from storage.artifact_store import open_artifacts
    from storage.compose_stack import PRIVATE
    from storage.private_server import PrivateServer

    # Not the compose stack's database, where it is the usual one: nobody wants synthetic studies among the others.
    everywhere = replace(everywhere, database=asked_database(everywhere.database) or PRIVATE)
    settings = everywhere.settings()
    open_artifacts(settings.artifacts)  # as above
    server = PrivateServer(settings.outputs)
    ours = settings.database is None and not server.running()
    tree, storage = everywhere.open("demo")
    try:
        archive, shown = demonstration.prepare(tree, storage, stderr(), trials=trials, patients=patients)
        code = run_workers(
            shown,
            tree,
            settings,
            stderr(),
            stop=stop,
            leave=leave,
            workers=workers,
            per_gpu=1,
            patience_s=PATIENCE_S,
            csv=None,
            dicom_root=None,
            log_options=everywhere.log_options,
        )
        if code != DONE or stop.is_set():
            return code
        best = studies.best_trial(shown)
        console, title = stdout(), f"{shown.name}: balanced accuracy adjusted for chance"
        console.print(ranking_table(shown.trials, studies.ranking(shown), title, console.width))
    finally:
        if ours:  # the dashboard starts it again; nothing is left running that was not
            storage.engine.dispose()
            server.stop()
    click.echo(f"best trial:       {shown.folder.trial(best.number).path}")
    click.echo(f"synthetic images: {archive}")
    program = "mammography" if shutil.which("mammography") else sys.argv[0]
    database = f" --database {PRIVATE}" if settings.database is None else ""
    click.echo(f"browse the study: {program} dashboard --outputs {settings.outputs}{database}")
    return DONE
