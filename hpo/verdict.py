"""What an error means, for the trial and for the worker: one table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hpo.errors import QueuedValueError, SearchError, TrialPrunedError
from storage.errors import DatabaseUnavailableError, StorageError, TakenOverError
from trainer.errors import DivergedError, InputError, OutOfMemoryError, StopRequestedError, TrainerError


class ForTrial(Enum):
    """What becomes of the trial."""

    PRUNED = "pruned"
    FAIL = "fail, with the reason; spends the budget"
    FAIL_FREE = "fail, with the traceback; does not spend the budget"
    REFUSED = "fail, with the reason; does not spend the budget"
    UNLUCKY = "free for another worker, but fails after three in a row that finished no epoch"
    RELEASE = "free for another worker, from where it stands"
    UNTOUCHED = "somebody else's by now"


class ForWorker(Enum):
    """What becomes of the worker."""

    GO_ON = "claims the next trial"
    STOP = "exit 0"
    LEAVE = "exit 1, one line"
    THIRD_TIME = "goes on, but stops after three in a row of one kind"


@dataclass(frozen=True)
class Verdict:
    """What an error means."""

    trial: ForTrial
    worker: ForWorker


_TABLE: tuple[tuple[tuple[type[BaseException], ...], Verdict], ...] = (
    ((TrialPrunedError,), Verdict(ForTrial.PRUNED, ForWorker.GO_ON)),
    ((QueuedValueError,), Verdict(ForTrial.REFUSED, ForWorker.GO_ON)),
    ((TakenOverError,), Verdict(ForTrial.UNTOUCHED, ForWorker.GO_ON)),
    ((StopRequestedError,), Verdict(ForTrial.RELEASE, ForWorker.STOP)),
    ((DivergedError, OutOfMemoryError), Verdict(ForTrial.FAIL, ForWorker.GO_ON)),
    ((DatabaseUnavailableError,), Verdict(ForTrial.UNTOUCHED, ForWorker.LEAVE)),
    ((InputError, TrainerError, StorageError, SearchError, OSError), Verdict(ForTrial.RELEASE, ForWorker.LEAVE)),
)
_ANYTHING_ELSE = Verdict(ForTrial.FAIL_FREE, ForWorker.THIRD_TIME)


_OUT_OF_SHARED_MEMORY = Verdict(ForTrial.UNLUCKY, ForWorker.GO_ON)
"""Its neighbours on the device may have taken the memory."""


def verdict(error: BaseException, *, alone: bool = True) -> Verdict:
    """
    Return what *error* means; the first row that fits it, else our own defect or a broken installation.

    Args:
        error: What was raised.
        alone: Whether the worker has its device to itself.
    """
    if isinstance(error, OutOfMemoryError) and not alone:
        return _OUT_OF_SHARED_MEMORY
    return next((row for kinds, row in _TABLE if isinstance(error, kinds)), _ANYTHING_ELSE)
