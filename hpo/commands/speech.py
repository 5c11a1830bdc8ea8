"""What commands say, and the exit codes: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def stdout() -> Console:
    """Return where results go; a width of its own where there is no terminal, so that tables are not cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)


def stderr() -> Console:
    """Return where everything else goes."""
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False)


def say(error: Exception | str, code: int) -> int:
    """Say something in one line on standard error, and return the exit code."""
    line = " ".join(str(error).split()) or type(error).__name__
    click.echo(f"mammography: {line}", err=True)
    return code


def on_purpose() -> tuple[type[Exception], ...]:
    """Return the roots of the errors that are said in one line; anything else is a defect of ours and shows a traceback."""
    from hpo.errors import SearchError
    from storage.errors import StorageError
    from storage.patience import FAULTS
    from trainer.errors import TrainerError

    return (SearchError, StorageError, TrainerError, OSError, *FAULTS)


def plain(error: Exception) -> Exception:
    """Return *error*, or what it means where it is the database driver's."""
    from storage.errors import DatabaseUnavailableError
    from storage.patience import FAULTS, first_line

    return DatabaseUnavailableError(first_line(error)) if isinstance(error, FAULTS) else error


def exit_code(error: Exception) -> int:
    """Return 2 for what the user can put right on the command line or in a file, else 1."""
    from hpo import errors as searching
    from storage import errors as storing
    from trainer.errors import DataError, InputError, StopRequestedError

    if isinstance(error, StopRequestedError):
        return INTERRUPTED
    wrong_input = (
        searching.StudyFileError,
        searching.NotTheStudysDataError,
        searching.NotTheStudysEmbeddingsError,
        searching.NoDataPlaceError,
        searching.QueuedValueError,
        storing.ArtifactPlaceError,
        storing.DatabaseUrlError,
        storing.StudyExistsError,
        storing.StudyFolderError,
        storing.StudyNameError,
        storing.UnknownStudyError,
        storing.ConfigurationTakenError,
        storing.StudyInUseError,
        storing.LimitError,
        DataError,
        InputError,
    )
    return WRONG_INPUT if isinstance(error, wrong_input) else FAILED
