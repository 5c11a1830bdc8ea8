"""A worker's judgement on a real PostgreSQL: what becomes of the claim, and whether the worker goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo.errors import TrialPrunedError
from hpo.hang import HangWatch, Pulse, Tolerance
from hpo.worker import BrokenInstallationError, Worker
from storage import ledger
from storage.claims import Claim, Claims, Idle
from storage.ledger import Limits
from storage.patience import Disturbance
from storage.record import describe_files
from storage.study_storage import StudyStorage, open_storage
from storage.tree import StudyFolder
from tests.conftest import PROJECT
from tests.trivial import Trivial, claims_of, make_study
from trainer.errors import DataError, DivergedError, OutOfMemoryError, StopRequestedError


@pytest.fixture
def storage(database_url: sa.URL) -> StudyStorage:
    """A study storage on a fresh database."""
    return open_storage(database_url, application_name="test")


@pytest.fixture
def claims(storage: StudyStorage) -> Claims:
    """The claims of a new study with a budget of three, in which a silent worker is lost at once."""
    return claims_of(storage, make_study(storage, Limits(3)), grace_s=0.0)


@pytest.fixture
def worker(claims: Claims) -> Worker:
    """A worker on that study."""
    return Worker(claims, Trivial(claims), threading.Event())


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
        worker._judge(late, error)
    assert claims.beat(successor)


def test_configuration_at_fault_fails_and_the_worker_goes_on(
    worker: Worker, claims: Claims, storage: StudyStorage
) -> None:
    """The reason is kept and the budget spent, however often it happens."""
    for number in range(3):
        worker._judge(claimed(claims), DivergedError(0, 1, 2))
        trial = storage.optuna.get_all_trials(claims.study_id)[number]
        assert (trial.state, trial.user_attrs["reason"]) == (
            TrialState.FAIL,
            "loss is not finite in fold 0, epoch 1, step 2",
        )
    assert ledger.budget(claims.engine, claims.study_id).left == 0


def test_three_defects_of_one_kind_end_the_worker_and_spend_nothing(worker: Worker, claims: Claims) -> None:
    """Another kind in between starts the count again; the third of a kind is said loudly."""
    for error in (KeyError("a"), KeyError("a"), TypeError("b"), KeyError("a"), KeyError("a")):
        worker._judge(claimed(claims), error)
    with pytest.raises(BrokenInstallationError, match="KeyError three times"):
        worker._judge(claimed(claims), KeyError("a"))
    assert ledger.budget(claims.engine, claims.study_id).left == 3


def test_bad_data_leaves_the_trial_to_others(worker: Worker, claims: Claims) -> None:
    """The worker leaves with the error, and the trial is free at once."""
    claim = claimed(claims)
    with pytest.raises(DataError):
        worker._judge(claim, DataError("x"))
    assert [attempt.ending for attempt in ledger.attempts(claims.engine, claim.trial_id)] == ["left"]
    assert claimed(claims).number == claim.number


def test_stop_gives_the_trial_back(worker: Worker, claims: Claims) -> None:
    """Asked to stop, the worker frees the trial and raises nothing."""
    claim = claimed(claims)
    worker._judge(claim, StopRequestedError())
    assert claimed(claims).number == claim.number


def test_pruned_trial_keeps_the_reason_and_has_no_value(worker: Worker, claims: Claims, storage: StudyStorage) -> None:
    """It spends budget, and Optuna does not take it for the best."""
    worker._judge(claimed(claims), TrialPrunedError("hopeless"))
    (trial,) = storage.optuna.get_all_trials(claims.study_id)
    assert (trial.state, trial.values, trial.user_attrs["reason"]) == (TrialState.PRUNED, None, "hopeless")
    assert ledger.budget(claims.engine, claims.study_id).left == 2


def test_out_of_memory_on_a_shared_device_is_nobodys_fault_at_first(claims: Claims, storage: StudyStorage) -> None:
    """The trial is free again; when it never gets through an epoch it fails at the third time."""
    worker = Worker(claims, Trivial(claims), threading.Event(), alone=False)
    worker.stop.set()  # else it gives its neighbours time to need less
    for _ in range(3):
        worker._judge(claimed(claims), OutOfMemoryError("full"))
    (trial,) = storage.optuna.get_all_trials(claims.study_id)
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "full")


def test_worker_finishes_the_budget_and_says_why_it_ends(worker: Worker, claims: Claims) -> None:
    """Through the same door as training, with something trivial in its place."""
    assert worker.run() is Idle.SPENT
    assert ledger.budget(claims.engine, claims.study_id).spent == 3
    worker.stop.set()
    assert worker.run() is None


def test_trial_is_given_back_by_another_thread(worker: Worker, claims: Claims) -> None:
    """While the main thread is in the middle of a long step; what it then tries is refused."""
    worker._claim = claimed(claims)
    worker.give_back()
    assert claimed(claims).number == 0


def test_hung_trial_is_given_up_with_its_stacks_and_fails_at_the_third_time(
    storage: StudyStorage, database_url: sa.URL, tmp_path: Path
) -> None:
    """Its process ends with it, for nothing can be asked of a thread that hangs."""
    study_id = make_study(storage, Limits(1))
    command = [sys.executable, "-m", "tests.trivial", database_url.render_as_string(hide_password=False), str(study_id)]
    for _ in range(3):
        assert subprocess.run([*command, "--hang", str(tmp_path)], cwd=PROJECT, timeout=60, check=False).returncode == 1
    log = (tmp_path / "run.log").read_text()
    assert "no progress for" in log
    assert "in train" in log
    (trial,) = storage.optuna.get_all_trials(study_id)
    assert trial.state == TrialState.FAIL
    assert [attempt.ending for attempt in ledger.attempts(storage.engine, trial._trial_id)] == ["hung"] * 3


def test_time_in_which_the_database_was_away_is_no_hang() -> None:
    """A trial that waits for the database is given up only when it still stands still afterwards."""
    disturbance, given_up = Disturbance(), threading.Event()
    pulse = Pulse(longest_epoch_s=0.1)
    with HangWatch(pulse, Tolerance(least_s=1.5), disturbance, lambda _: given_up.set()):
        for _ in range(6):
            disturbance.note()
            assert not given_up.wait(0.5)
        assert given_up.wait(5.0)


@pytest.mark.parametrize(
    ("longest", "limit"), [(None, 1800.0), (0.1, 120.0), (24.0, 120.0), (60.0, 300.0), (3600.0, 18000.0)]
)
def test_patience_with_a_trial_follows_from_its_own_epochs(longest: float | None, limit: float) -> None:
    """Five times the longest, and two minutes at least."""
    assert Tolerance().limit_s(longest) == limit


def test_many_workers_end_with_the_exact_budget(storage: StudyStorage, database_url: sa.URL) -> None:
    """Sixteen at once, some of which find nothing to do: forty trials, each finished once."""
    study_id = make_study(storage, Limits(40))

    def work(_: int) -> Idle | None:
        own = open_storage(database_url, application_name="test")
        claims = claims_of(own, study_id)
        return Worker(claims, Trivial(claims), threading.Event()).run()

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(work, range(16))) == {Idle.SPENT}
    trials = storage.optuna.get_all_trials(study_id)
    assert [trial.number for trial in trials] == list(range(40))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({str(trial.params) for trial in trials}) == 40


def test_folder_that_a_successor_removed_is_no_reason_to_leave(worker: Worker, claims: Claims, tmp_path: Path) -> None:
    """A late worker fails its trial, cannot write why, and finds the trial somebody else's: it goes on."""
    late = claimed(claims)
    successor = claimed(claims)
    assert isinstance(worker.work, Trivial)
    worker.work.folder = tmp_path / "removed"
    worker._judge(late, DivergedError(0, 0, 0))
    assert claims.beat(successor)


def test_defects_with_anything_between_them_are_not_in_a_row(worker: Worker, claims: Claims) -> None:
    """A pruned trial, or one that failed by its own fault, shows that the installation works."""
    for error in (KeyError("a"), TrialPrunedError("x"), KeyError("a"), DivergedError(0, 0, 0), KeyError("a")):
        worker._judge(claimed(claims), error)
    assert ledger.budget(claims.engine, claims.study_id).spent == 2


def test_reason_that_the_database_cannot_store_is_stored_without_it(
    worker: Worker, claims: Claims, storage: StudyStorage
) -> None:
    """PostgreSQL has no NUL in a text."""
    worker._judge(claimed(claims), RuntimeError("bad\x00byte"))
    (trial,) = storage.optuna.get_all_trials(claims.study_id)
    assert "badbyte" in trial.user_attrs["reason"]


def test_publisher_that_is_frozen_between_record_and_rename(worker: Worker, claims: Claims, tmp_path: Path) -> None:
    """Its successor puts the fold in its place; the late rename fails, is no reason to leave, and changes nothing."""
    trial = StudyFolder(tmp_path).trial(0)
    late = claimed(claims)
    mine = trial.begin_attempt(late.token, [], {})
    (mine.fold(0) / "val_predictions.csv").write_text("the late one's")
    claims.publish_fold(late, 0, 0.5, describe_files(mine.fold(0)))
    successor = claimed(claims)
    theirs = trial.begin_attempt(successor.token, [late.token], {0: late.token})
    assert theirs.published(0) == trial.fold(0)
    with pytest.raises(OSError) as raised:  # noqa: PT011 - whichever the system says
        mine.publish(0)
    worker._judge(late, raised.value)
    assert (trial.fold(0) / "val_predictions.csv").read_text() == "the late one's"
    assert ledger.published_folds(claims.engine, late.trial_id)[0].token == late.token
    assert claims.beat(successor)
