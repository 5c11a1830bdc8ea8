"""What each error means, as the house style's table has it."""

from __future__ import annotations

import pytest

from hpo.errors import NotTheStudysDataError
from hpo.verdict import ForTrial, ForWorker, verdict
from storage.errors import DatabaseUnavailableError, FolderVanishedError, TakenOverError
from trainer.errors import DataError, DivergedError, OutOfMemoryError, StopRequestedError, WeightsUnavailableError


@pytest.mark.parametrize(
    ("error", "trial", "worker"),
    [
        (DivergedError(1, 2, 3), ForTrial.FAIL, ForWorker.GO_ON),
        (OutOfMemoryError("8 GiB"), ForTrial.FAIL, ForWorker.GO_ON),
        (StopRequestedError(), ForTrial.RELEASE, ForWorker.STOP),
        (DataError("x"), ForTrial.RELEASE, ForWorker.LEAVE),
        (WeightsUnavailableError("x"), ForTrial.RELEASE, ForWorker.LEAVE),
        (NotTheStudysDataError("s", "a", "b"), ForTrial.RELEASE, ForWorker.LEAVE),
        (FolderVanishedError.__new__(FolderVanishedError), ForTrial.RELEASE, ForWorker.LEAVE),
        (OSError(28, "No space left on device"), ForTrial.RELEASE, ForWorker.LEAVE),
        (DatabaseUnavailableError("gone"), ForTrial.UNTOUCHED, ForWorker.LEAVE),
        (TakenOverError(7), ForTrial.UNTOUCHED, ForWorker.GO_ON),
        (KeyError("x"), ForTrial.FAIL_FREE, ForWorker.THIRD_TIME),
        (RuntimeError("x"), ForTrial.FAIL_FREE, ForWorker.THIRD_TIME),
    ],
)
def test_meaning_of_an_error(error: Exception, trial: ForTrial, worker: ForWorker) -> None:
    """Every row of the table."""
    meaning = verdict(error)
    assert (meaning.trial, meaning.worker) == (trial, worker)
