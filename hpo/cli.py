"""
The command `mammography`: the only module that prints and picks an exit code.

Commands import what they need when they run, so that `--help` answers at once and `study status` never loads torch.
"""

from __future__ import annotations

import functools
import gc
import logging
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hpo.settings import Settings
from trainer.cli import checked, config_options, run_config
from trainer.config import CheckConfig, EmbedConfig, RunConfig

if TYPE_CHECKING:
    from rich.console import Console

    from hpo.study import Study
    from storage.study_storage import StudyStorage
    from storage.tree import OutputTree

Command = TypeVar("Command", bound=Callable[..., Any])

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
_LEVELS = click.Choice(["debug", "info", "warning", "error"])
_PATH = click.Path(path_type=Path)
_TAKE_A_LONE_DASH = frozenset({"train-density", "embed"})
"""Commands that are also written with ``--`` before their flags."""


@dataclass(frozen=True)
class Everywhere:
    """What every command takes, before its name or after it."""

    database: str | None = None
    outputs: Path | None = None
    log_level: str = "info"
    log_format: str = "text"

    @property
    def log_options(self) -> tuple[str, ...]:
        """The flags with which a worker logs as its launcher does."""
        return "--log-level", self.log_level, "--log-format", self.log_format

    def settings(self) -> Settings:
        """Return what is given, else what the environment says."""
        return Settings.resolve(database=self.database, outputs=self.outputs)

    def open(self, application: str) -> tuple[OutputTree, StudyStorage]:
        """Return the output tree and the study storage."""
        from hpo.logs import quiet_optuna
        from storage.database import choose
        from storage.study_storage import open_storage
        from storage.tree import OutputTree

        quiet_optuna()
        settings = self.settings()
        url = choose(settings.database, settings.outputs)
        return OutputTree(settings.outputs), open_storage(url, application_name=f"mammography {application}")

    def study(self, name: str, application: str) -> tuple[OutputTree, Study]:
        """Return the output tree and a study."""
        from hpo import study

        tree, storage = self.open(application)
        return tree, study.load(name, tree, storage)


def everywhere(command: Command) -> Command:
    """Give a command the options that every command takes; it finds them in the context."""

    def take(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            context.obj = replace(context.obj or Everywhere(), **{str(parameter.name): value})
        elif context.obj is None:
            context.obj = Everywhere()

    flag = functools.partial(click.option, expose_value=False, is_eager=True, callback=take)

    @functools.wraps(command)
    def logging_first(*args: Any, **kwargs: Any) -> Any:
        from hpo.logs import set_up

        settled = click.get_current_context().obj
        set_up(settled.log_level, settled.log_format)
        return command(*args, **kwargs)

    decorated: Any = command if command.__name__ == "mammography" else logging_first
    options = (
        flag("--database", metavar="URL", help="PostgreSQL; without it a private server under the output folder."),
        flag("--outputs", type=click.Path(path_type=Path, file_okay=False), help="Output folder [outputs]."),
        flag("--log-level", type=_LEVELS, help="Least severe log lines to show [info]."),
        flag("--log-format", type=click.Choice(["text", "json"]), help="Form of log lines [text]."),
    )
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def data_places(command: Command) -> Command:
    """Give a command the options that say where a study's data are, if not where the study says."""
    options = (
        click.option("--csv", type=_PATH, help="Label file, if not the one the study names."),
        click.option("--dicom-root", type=_PATH, help="Folder of the images, if not the one the study names."),
    )
    for option in reversed(options):
        command = option(command)
    return command


# Without a command click would squeeze its whole help into what is one line for us.
@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@everywhere
def mammography() -> None:
    """Hyperparameter search for mammography classifiers. Research software, not for clinical use."""


@mammography.command("train-density", context_settings={"ignore_unknown_options": False})
@config_options(RunConfig)
@click.option(
    "--resume",
    type=_PATH,
    help="Folder of a run, to be continued to the bit; no other flag is needed then.",
    metavar="DIR",
)
@everywhere
@click.pass_obj
def train_density(everywhere: Everywhere, /, resume: Path | None, **given: Any) -> int:
    """Train one configuration; with --cv-folds K, K-fold cross-validation."""
    from hpo.signals import stop_on_signal

    stop = stop_on_signal()  # before torch starts threads of its own
    from hpo.tables import opening_progress
    from trainer import by_hand, run_record

    config = run_config(given) if resume is None else run_record.resumed_config(resume, given)
    outputs = everywhere.settings().outputs
    with opening_progress(_stderr()) as progress:
        folder, summary = by_hand.train_density(config, outputs, resume=resume, stop=stop, progress=progress)
    value = "does not exist" if summary.value is None else f"{summary.value:.4f}"
    click.echo(f"balanced accuracy adjusted for chance: {value}")
    click.echo(str(folder))
    return DONE


@mammography.command("embed")
@config_options(EmbedConfig)
@everywhere
@click.pass_obj
def embed(everywhere: Everywhere, /, **given: Any) -> int:
    """Write a backbone's pooled features of all images, for --embeddings-dir."""
    from hpo.signals import stop_on_signal

    config = checked(EmbedConfig, given)
    stop = stop_on_signal()  # before torch starts threads of its own
    from hpo.tables import opening_progress
    from trainer import pooled_features

    with opening_progress(_stderr()) as progress:
        record, computed = pooled_features.embed(config, everywhere.settings().outputs, stop=stop, progress=progress)
    click.echo(f"features: ({record.n_images}, {record.n_features}) float32{'' if computed else ', there already'}")
    click.echo(str(config.outdir))
    return DONE


@mammography.group(no_args_is_help=False)
@everywhere
def data() -> None:
    """Archives of images and labels."""


@data.command("check")
@config_options(CheckConfig)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--preview", type=_PATH, metavar="FILE.png", help="Draw images of each class before and after preprocessing."
)
@everywhere
@click.pass_obj
def data_check(everywhere: Everywhere, /, *, as_json: bool, preview: Path | None, **given: Any) -> int:
    """Say what would be used of an archive, and what not and why, before anything is trained."""
    from hpo.signals import stop_on_signal

    config = checked(CheckConfig, given)
    stop = stop_on_signal()  # before a library starts threads of its own
    from hpo.tables import archive_tables, opening_progress
    from trainer.archive_check import check_archive

    with opening_progress(_stderr()) as progress:
        found = check_archive(config, everywhere.settings().outputs, preview=preview, stop=stop, progress=progress)
    if as_json:
        click.echo(found.report.model_dump_json(indent=2))
    else:
        _stdout().print(*archive_tables(found.report), sep="\n", markup=False, highlight=False)
    return DONE if found.error is None else _say(found.error, _exit_code(found.error))


@data.command("phantom")
@click.argument("out", type=_PATH)
@click.option("--patients", type=click.IntRange(min=1), default=60, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True)
@click.option(
    "--imbalance",
    type=click.FloatRange(1, 20),
    help="Patients of the most frequent grade for one of the rarest [as in screening].",
)
@click.option(
    "--malformed",
    is_flag=True,
    help="Add broken and odd files of every kind; with fewer than 42 patients the broken ones are more than the share "
    "that --max-rejected allows by default.",
)
@everywhere
def data_phantom(out: Path, patients: int, seed: int, imbalance: float | None, *, malformed: bool) -> int:
    """Make a synthetic DICOM archive with labels in OUT."""
    from trainer.data.phantom import make_phantom

    make_phantom(out, patients=patients, seed=seed, imbalance=imbalance, malformed=malformed)
    click.echo(f"--csv {out / 'classificacao.csv'} --dicom-root {out / 'archive'}")
    return DONE


@mammography.group(no_args_is_help=False)
@everywhere
def study() -> None:
    """Create studies and look at them."""


@study.command("create")
@click.argument("file", type=_PATH)
@click.option("--name", help="Name, if not the one in the file.")
@click.option("--trials", type=click.IntRange(min=1), help="Budget, if not the one in the file.")
@data_places
@everywhere
@click.pass_obj
def study_create(
    everywhere: Everywhere,
    /,
    file: Path,
    name: str | None,
    trials: int | None,
    csv: Path | None,
    dicom_root: Path | None,
) -> int:
    """Create the study in FILE: decode its data, fix its folds, write it down."""
    from hpo.signals import stop_on_signal

    stop = stop_on_signal()  # before a library starts threads of its own
    from hpo.study import DataPlace
    from hpo.study_file import read_study_file
    from hpo.tables import opening_progress

    overrides: dict[str, Any] = {}
    if name is not None:
        overrides["study"] = name
    if trials is not None:
        overrides["budget"] = {"trials": trials}
    places = {key: place.absolute() for key, place in (("csv", csv), ("dicom_root", dicom_root)) if place is not None}
    if places:
        overrides["data"] = places
    checked = read_study_file(file, overrides=overrides)
    tree, storage = everywhere.open("study")
    place = DataPlace.choose(checked, tree, csv=None, dicom_root=None, stop=stop)
    place.check()
    from hpo.creation import create  # loads torch: only where nothing is wrong so far

    with opening_progress(_stderr()) as progress:
        created = create(checked, place, tree, storage, progress)
    click.echo(f"{created.name}: {created.file.budget.trials} trials of {created.file.cv.folds} folds")
    click.echo(str(created.folder.path))
    return DONE


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


@study.command("status")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@everywhere
@click.pass_obj
def study_status(everywhere: Everywhere, /, name: str, *, as_json: bool) -> int:
    """Say how far study NAME is and who works on it."""
    from hpo.status import status
    from hpo.tables import status_table

    _, found = everywhere.study(name, "study")
    now = status(found)
    if as_json:
        click.echo(now.model_dump_json(indent=2))
    else:
        _stdout().print(status_table(now))
    return DONE


@study.command("best")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="The content of its optuna_trial.json.")
@everywhere
@click.pass_obj
def study_best(everywhere: Everywhere, /, name: str, *, as_json: bool) -> int:
    """Show the best trial of study NAME: of those that finished all their folds."""
    from hpo import study as studies

    _, found = everywhere.study(name, "study")
    best = studies.best_trial(found)
    folder = found.folder.trial(best.number)
    if as_json:
        click.echo(folder.record.read_text(encoding="utf-8"), nl=False)
        return DONE
    click.echo(f"trial {best.number}: {best.values[0]:.4f}")
    for key, value in best.params.items():
        click.echo(f"  {key} = {value}")
    click.echo(str(folder.path))
    return DONE


@study.command("trials")
@click.argument("name")
@click.option("--csv", "csv", type=_PATH, help="Write them there instead of showing the ranking.")
@everywhere
@click.pass_obj
def study_trials(everywhere: Everywhere, /, name: str, csv: Path | None) -> int:
    """Show the trials of study NAME, the best first."""
    from hpo.tables import ranking_table, trials_frame

    _, found = everywhere.study(name, "study")
    if csv is None:
        _stdout().print(ranking_table(found.trials, name))
    else:
        trials_frame(found.trials).to_csv(csv, index=False)
        click.echo(str(csv))
    return DONE


@mammography.command("worker")
@click.argument("name")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads of a step [all cores].")
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds to wait for a database that is away.",
)
@data_places
@everywhere
@click.pass_obj
def worker(
    everywhere: Everywhere,
    /,
    name: str,
    device: str,
    threads: int | None,
    patience: float,
    csv: Path | None,
    dicom_root: Path | None,
) -> int:
    """Work on study NAME in this process until its budget is spent."""
    from hpo.signals import stop_on_signal

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise click.BadParameter(f"{device!r} is none of auto, cpu, cuda and cuda:N", param_hint="--device")
    stop = stop_on_signal()  # before torch starts threads of its own
    tree, found = everywhere.study(name, "worker")
    from hpo.worker import Worker, set_up_station  # loads torch: only for a study that exists
    from storage.patience import Patience
    from trainer.errors import StopRequestedError

    try:
        station = set_up_station(
            found,
            tree,
            device=device,
            threads=threads,
            patience=Patience(patience, stop),
            stop=stop,
            csv=csv,
            dicom_root=dicom_root,
        )
    except StopRequestedError as error:
        return _say(error, DONE)
    try:
        farewell = Worker(station, stop).run()
    except _on_purpose() as error:
        return _say(error, FAILED)
    logging.getLogger(__name__).info("worker ends: %s", farewell.value, extra={"action": "worker_ends"})
    return DONE


@mammography.command("launch")
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
@data_places
@everywhere
@click.pass_obj
def launch(
    everywhere: Everywhere, /, name: str, workers: str, per_gpu: int, csv: Path | None, dicom_root: Path | None
) -> int:
    """Start workers on study NAME, watch them, and end when its budget is spent."""
    from hpo.signals import stop_on_signal

    if workers != "auto" and not (workers.isdecimal() and int(workers) > 0):
        raise click.BadParameter(f"{workers!r} is neither a number above 0 nor auto", param_hint="--workers")
    stop = stop_on_signal()  # before a library starts threads of its own
    from hpo.launcher import launch as run_workers

    tree, found = everywhere.study(name, "launch")
    from trainer.errors import StopRequestedError

    try:
        return run_workers(
            found,
            tree,
            everywhere.settings(),
            _stderr(),
            stop=stop,
            workers=None if workers == "auto" else int(workers),
            per_gpu=per_gpu,
            csv=csv,
            dicom_root=dicom_root,
            log_options=everywhere.log_options,
        )
    except StopRequestedError as error:
        return _say(error, DONE)


@mammography.command("demo")
@click.option("--trials", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--patients", type=click.IntRange(min=18), default=60, show_default=True)
@everywhere
@click.pass_obj
def demo(everywhere: Everywhere, /, trials: int, workers: int, patients: int) -> int:
    """Search over a synthetic archive, from nothing to a ranked study. No network, no GPU needed."""
    from hpo.signals import stop_on_signal

    stop = stop_on_signal()  # before a library starts threads of its own
    from hpo import demo as demonstration
    from hpo import study as studies
    from hpo.launcher import launch as run_workers
    from hpo.tables import ranking_table
    from storage.private_server import PrivateServer

    settings = everywhere.settings()
    server = PrivateServer(settings.outputs)
    ours = settings.database is None and not server.running()
    tree, storage = everywhere.open("demo")
    try:
        archive, shown = demonstration.prepare(tree, storage, _stderr(), trials=trials, patients=patients)
        code = run_workers(
            shown,
            tree,
            settings,
            _stderr(),
            stop=stop,
            workers=workers,
            per_gpu=1,
            csv=None,
            dicom_root=None,
            log_options=everywhere.log_options,
        )
        if code != DONE or stop.is_set():
            return code
        best = studies.best_trial(shown)
        _stdout().print(ranking_table(shown.trials, f"{shown.name}: balanced accuracy adjusted for chance"))
    finally:
        if ours:  # the dashboard starts it again; nothing is left running that was not
            storage.engine.dispose()
            server.stop()
    click.echo(f"best trial:       {shown.folder.trial(best.number).path}")
    click.echo(f"synthetic images: {archive}")
    program = "mammography" if shutil.which("mammography") else sys.argv[0]
    click.echo(f"browse the study: {program} dashboard --outputs {settings.outputs}")
    return DONE


@mammography.command("dashboard")
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
    if host not in {"127.0.0.1", "localhost", "::1"}:
        click.echo(f"{host} lets other machines in, and the password travels in plain HTTP", err=True)
    # A link that opens without the password is for the person at the terminal, not for a log.
    click.echo(f"dashboard: {server.url_with_token if sys.stdout.isatty() else server.url}")
    click.echo(f"password:  in {password_file}; Ctrl-C ends it")
    server.run()
    return DONE


@mammography.group(no_args_is_help=False)
@everywhere
def db() -> None:
    """The private PostgreSQL server under the output folder."""


@db.command("start")
@everywhere
@click.pass_obj
def db_start(everywhere: Everywhere, /) -> int:
    """Start the private server; every command that needs it does so by itself."""
    from storage.private_server import PrivateServer

    server = PrivateServer(everywhere.settings().outputs)
    server.start()
    click.echo(f"running, in {server.folder}")
    return DONE


@db.command("stop")
@everywhere
@click.pass_obj
def db_stop(everywhere: Everywhere, /) -> int:
    """Stop the private server."""
    from storage.private_server import PrivateServer

    PrivateServer(everywhere.settings().outputs).stop()
    click.echo("stopped")
    return DONE


@db.command("status")
@everywhere
@click.pass_obj
def db_status(everywhere: Everywhere, /) -> int:
    """Say which database is used and whether it answers."""
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
    click.echo(f"{display(url)}: running")
    return DONE


@db.command("url")
@click.option("--show-password", is_flag=True, help="Do not hide it.")
@everywhere
@click.pass_obj
def db_url(everywhere: Everywhere, /, *, show_password: bool) -> int:
    """Print the URL of the database, for other programs."""
    from storage.database import choose

    settings = everywhere.settings()
    url = choose(settings.database, settings.outputs)
    click.echo(url.render_as_string(hide_password=not show_password))
    return DONE


def run(arguments: list[str]) -> int:
    """Return the exit code of a command line; every failure on purpose is one line on standard error."""
    try:
        if _TAKE_A_LONE_DASH & set(arguments):
            arguments = [argument for argument in arguments if argument != "--"]
        with mammography.make_context("mammography", arguments) as context:
            return mammography.invoke(context) or DONE
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.ClickException as error:
        return _say(error.format_message(), WRONG_INPUT)
    except _on_purpose() as error:
        return _say(error, _exit_code(error))


def _stdout() -> Console:
    """Return where results go; a width of its own where there is no terminal, so that tables are not cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def _stderr() -> Console:
    """Return where everything else goes."""
    from rich.console import Console

    return Console(stderr=True)


def _on_purpose() -> tuple[type[Exception], ...]:
    """Return the roots of the errors that are said in one line; anything else is a defect of ours and shows a traceback."""
    from hpo.errors import SearchError
    from storage.errors import StorageError
    from trainer.errors import TrainerError

    return (SearchError, StorageError, TrainerError, OSError)


def _exit_code(error: Exception) -> int:
    """Return 2 for what the user can put right on the command line or in a file, else 1."""
    from hpo.errors import NoDataPlaceError, NotTheStudysDataError, NotTheStudysEmbeddingsError, StudyFileError
    from storage.errors import DatabaseUrlError, StudyExistsError, StudyFolderError, StudyNameError, UnknownStudyError
    from trainer.errors import DataError, InputError, StopRequestedError

    if isinstance(error, StopRequestedError):
        return INTERRUPTED
    searching = (StudyFileError, NotTheStudysDataError, NotTheStudysEmbeddingsError, NoDataPlaceError)
    storing = (DatabaseUrlError, StudyExistsError, StudyFolderError, StudyNameError, UnknownStudyError)
    return WRONG_INPUT if isinstance(error, (*searching, *storing, DataError, InputError)) else FAILED


def _say(error: Exception | str, code: int) -> int:
    line = " ".join(str(error).split()) or type(error).__name__
    click.echo(f"mammography: {line}", err=True)
    return code


def main() -> None:
    """Run the command line and leave with its exit code."""
    # Half a million objects are made at the start and stay: looking through them every 700 costs a second.
    gc.set_threshold(5_000)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
