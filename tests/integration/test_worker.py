"""A worker's judgement on a real PostgreSQL: what becomes of the claim, and whether the worker goes on."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import cast

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo.objective import Station
from hpo.worker import BrokenInstallationError, Worker
from storage import ledger
from storage.claims import Claim, Claims
from storage.study_storage import StudyStorage, open_storage
from trainer.errors import DataError, DivergedError, StopRequestedError


@dataclass(frozen=True)
class StationWithoutData:
    """Enough of a station for what happens to trials that never got as far as a folder."""

    claims: Claims


@pytest.fixture
def storage(database_url: sa.URL) -> StudyStorage:
    """A study storage on a fresh database."""
    return open_storage(database_url, application_name="test")


@pytest.fixture
def claims(storage: StudyStorage) -> Claims:
    """The claims of a new study with a budget of three."""
    study = optuna.create_study(storage=storage.optuna, study_name="s", direction="maximize")
    with storage.engine.begin() as connection:
        assert ledger.register(
            connection,
            study_id=study._study_id,
            resolved={},
            data_hash="d",
            folds_hash="f",
            folds_csv="",
            budget_trials=3,
        )
    return Claims(storage.engine, study._study_id, "worker", "cpu", "cpu", grace_s=0.0)


@pytest.fixture
def worker(claims: Claims) -> Worker:
    """A worker on that study."""
    return Worker(cast("Station", StationWithoutData(claims)), threading.Event())


def claimed(claims: Claims) -> Claim:
    """Return a claim, which there must be."""
    claim = claims.claim()
    assert isinstance(claim, Claim)
    return claim


@pytest.mark.parametrize(
    "error", [FileNotFoundError("the successor removed it"), RuntimeError("no folder"), DataError("x")]
)
def test_worker_whose_trial_was_taken_over_goes_on(worker: Worker, claims: Claims, error: Exception) -> None:
    """Whatever went wrong with a trial that is somebody else's by now, it is neither touched nor a reason to leave."""
    late = claimed(claims)
    successor = claimed(claims)
    assert successor.number == late.number
    for _ in range(3):
        worker._judge(late, None, error)
    assert claims.beat(successor)


def test_configuration_at_fault_fails_and_the_worker_goes_on(
    worker: Worker, claims: Claims, storage: StudyStorage
) -> None:
    """The reason is kept and the budget spent, however often it happens."""
    for number in range(3):
        worker._judge(claimed(claims), None, DivergedError(0, 1, 2))
        trial = storage.optuna.get_all_trials(claims.study_id)[number]
        assert (trial.state, trial.user_attrs["reason"]) == (
            TrialState.FAIL,
            "loss is not finite in fold 0, epoch 1, step 2",
        )
    assert ledger.budget(claims.engine, claims.study_id).left == 0


def test_three_defects_of_one_kind_end_the_worker_and_spend_nothing(worker: Worker, claims: Claims) -> None:
    """Another kind in between starts the count again; the third of a kind is said loudly."""
    for error in (KeyError("a"), KeyError("a"), TypeError("b"), KeyError("a"), KeyError("a")):
        worker._judge(claimed(claims), None, error)
    with pytest.raises(BrokenInstallationError, match="KeyError three times"):
        worker._judge(claimed(claims), None, KeyError("a"))
    assert ledger.budget(claims.engine, claims.study_id).left == 3


def test_bad_data_leaves_the_trial_to_others(worker: Worker, claims: Claims) -> None:
    """The worker leaves with the error, and the trial is free at once."""
    claim = claimed(claims)
    with pytest.raises(DataError):
        worker._judge(claim, None, DataError("x"))
    assert [attempt.ending for attempt in ledger.attempts(claims.engine, claim.trial_id)] == ["stopped"]
    assert claimed(claims).number == claim.number


def test_stop_gives_the_trial_back(worker: Worker, claims: Claims) -> None:
    """Asked to stop, the worker frees the trial and raises nothing."""
    claim = claimed(claims)
    worker._judge(claim, None, StopRequestedError())
    assert claimed(claims).number == claim.number
