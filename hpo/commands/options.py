"""Options that commands share, and what they make of them: the output tree, the storage, a study."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hpo.settings import Settings

if TYPE_CHECKING:
    from hpo.study import Study
    from storage.study_storage import StudyStorage
    from storage.tree import OutputTree

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
PATIENCE_S = 600.0
_LEVELS = click.Choice(["debug", "info", "warning", "error"])


@dataclass(frozen=True)
class Everywhere:
    """What every command takes, before its name or after it."""

    database: str | None = field(default=None, repr=False)
    outputs: Path | None = None
    artifacts: str | None = None
    log_level: str = "info"
    log_format: str = "text"

    @property
    def log_options(self) -> tuple[str, ...]:
        """The flags with which a worker logs as its launcher does."""
        return "--log-level", self.log_level, "--log-format", self.log_format

    def settings(self) -> Settings:
        """Return what is given, else what the environment says."""
        return Settings.resolve(database=self.database, outputs=self.outputs, artifacts=self.artifacts)

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
        flag("--database", metavar="URL", help="PostgreSQL, or private: the server under the output folder."),
        flag("--outputs", type=click.Path(path_type=Path, file_okay=False), help="Output folder [outputs]."),
        flag("--artifacts", metavar="PLACE", help="A folder, or s3://BUCKET/PREFIX [artifacts, in the output folder]."),
        flag("--log-level", type=_LEVELS, help="Least severe log lines to show [info]."),
        flag("--log-format", type=click.Choice(["text", "json"]), help="Form of log lines [text]."),
    )
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def _number(context: click.Context, parameter: click.Parameter, value: float) -> float:  # noqa: ARG001 - click's signature
    if math.isnan(value):
        raise click.BadParameter("nan is no number")
    return value


def patient(command: Command) -> Command:
    """Give a command the option that says how long it waits for a database that is away."""
    return click.option(
        "--patience",
        type=click.FloatRange(min=0),
        callback=_number,
        default=PATIENCE_S,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for a database that is away.",
    )(command)


def data_places(command: Command) -> Command:
    """Give a command the options that say where a study's data are, if not where the study says."""
    options = (
        click.option("--csv", type=PATH, help="Label file, if not the one the study names."),
        click.option("--dicom-root", type=PATH, help="Folder of the images, if not the one the study names."),
    )
    for option in reversed(options):
        command = option(command)
    return command
