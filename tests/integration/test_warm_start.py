"""A study that starts from another one, on a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo import study as studies
from hpo.creation import queue_defaults
from hpo.replay import NotReplayableError, recall
from hpo.study import Study, best_trial
from hpo.study_file import StudyFile
from hpo.warm_start import Inheritance, queue_best, take_over
from storage import exhibits, ledger, steering
from storage.claims import Claim, Claims, Ending
from storage.exhibits import NOTE
from storage.record import TrialRecord
from storage.study_storage import StudyStorage, open_storage
from storage.tree import OutputTree

SEARCH = {"lr": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}}
MakeStudy = Callable[..., Study]


@pytest.fixture
def storage(database_url: sa.URL) -> StudyStorage:
    """A study storage on a fresh database."""
    return open_storage(database_url, application_name="test")


@pytest.fixture
def tree(tmp_path: Path) -> OutputTree:
    """An empty output folder."""
    return OutputTree(tmp_path)


@pytest.fixture
def make_study(storage: StudyStorage, tree: OutputTree) -> MakeStudy:
    """A function that registers a study of three folds, on data and folds with these hashes."""

    def make(name: str, data: str = "d", folds: str = "f", search: dict[str, Any] = SEARCH, **train: Any) -> Study:
        file = StudyFile.model_validate(
            {"study": name, "cv": {"folds": 3}, "train": train, "search": search, "budget": {"trials": 9}}
        )
        created = optuna.create_study(storage=storage.optuna, study_name=name, direction="maximize")
        with storage.engine.begin() as connection:
            ledger.register(
                connection,
                study_id=created._study_id,
                resolved=file.model_dump(mode="json"),
                data_hash=data,
                folds_hash=folds,
                folds_csv="",
                limits=file.budget.limits(file.space().size()),
            )
        return studies.load(name, tree, storage)

    return make


def start_from(study: Study, source: Study, tree: OutputTree) -> Inheritance:
    """Do what a creation does with an older study, but for the defaults."""
    return queue_best(study, source, take_over(study, source, tree))


def run_trial(study: Study, params: dict[str, Any], scores: list[float], ending: Ending) -> Claim:
    """Let a worker do a trial with these parameters, and the folds that have scores."""
    claims = Claims(study.storage.engine, study.registration.study_id, "w", "cpu", "cpu", grace_s=60)
    claim = claims.claim()
    assert isinstance(claim, Claim)
    claims.settle_parameters(claim, params, study.space.distributions(params))
    for fold, score in enumerate(scores):
        claims.publish_fold(claim, fold, score, ())
    value = sum(scores) / 3 if ending is Ending.COMPLETE else None
    claims.finish(claim, ending, value=value, attributes={"reason": "why"} if value is None else {})
    return claim


def searched(study: Study) -> None:
    """Do six complete trials, a pruned one and a failed one."""
    for number in range(6):
        run_trial(study, {"lr": (number + 1) * 1e-4}, [number / 10] * 3, Ending.COMPLETE)
    run_trial(study, {"lr": 2e-3}, [0.1], Ending.PRUNED)
    run_trial(study, {"lr": 3e-3}, [], Ending.FAIL)


def write_record(study: Study, claim_number: int) -> None:
    """Write what a worker leaves of a trial, as far as it matters here."""
    now = datetime.now(UTC)
    record = TrialRecord(
        study=study.name, number=claim_number, root_number=claim_number, attempts=[], state="complete", reason=None,
        value=0.5, params={}, distributions={}, fold_scores=[0.5, 0.5, 0.5], n_folds_done=3, pruned_at=None, config={},
        seeds={"study": 42, "trial": claim_number}, threads=1, resolution=None, versions={}, git_commit=None, data_hash="d",
        folds_hash="f", device="cpu", gpu_seconds=0.0, started_at=now, finished_at=now, artifacts=[],
    )  # fmt: skip
    folder = study.folder.trial(claim_number)
    folder.path.mkdir(parents=True)
    folder.record.write_text(record.model_dump_json())


def test_trials_of_the_same_experiment_come_with_their_scores(
    make_study: MakeStudy, tree: OutputTree, database_url: sa.URL
) -> None:
    """
    Complete and pruned ones, at no cost to the budget, and the best of them is the best here, with a record and a note that
    say where its files are. A second call changes nothing.
    """
    old = make_study("old")
    searched(old)
    exhibits.attach_late(old.storage.engine, old.trials[6]._trial_id, {NOTE: "why"})
    write_record(old, 5)
    wider = {**SEARCH, "dropout": {"type": "float", "low": 0.0, "high": 0.5}}
    new = make_study("new", search=wider)
    taken = start_from(new, old, tree)
    assert (len(taken.numbers), taken.unusable, taken.queued) == (7, 1, ())
    states = [trial.state for trial in new.trials]
    assert states == [TrialState.COMPLETE] * 6 + [TrialState.PRUNED]
    pruned = new.trials[6]
    assert pruned.params == {"lr": 2e-3, "dropout": 0.0}
    assert pruned.intermediate_values == {0: 0.1}
    assert pruned.user_attrs == {"from": {"study": "old", "number": 6}, "reason": "why"}
    budget = ledger.budget(new.storage.engine, new.registration.study_id)
    assert (budget.spent, budget.left) == (0, 9)

    best = best_trial(new)
    assert best.value == pytest.approx(0.5)
    record = json.loads(new.folder.trial(best.number).record.read_text())
    assert (record["study"], record["number"], record["params"]) == ("new", best.number, best.params)
    assert record["taken_over_from"] == {"study": "old", "number": 5}
    assert record["seeds"]["trial"] == 5
    with pytest.raises(NotReplayableError, match="trial 5 of study 'old'"):
        recall(new, best.number)

    storage = open_storage(database_url, application_name="test")
    note = storage.optuna.get_trial_system_attrs(best._trial_id)[NOTE]
    storage.engine.dispose()
    assert note.startswith("**0.5000**")
    assert "Taken over from trial 5 of study old" in note

    again = start_from(new, old, tree)
    assert (again.numbers, again.there, len(new.trials)) == ((), 7, 7)


def test_a_reason_that_may_name_somebody_stays_where_it_is(make_study: MakeStudy, tree: OutputTree) -> None:
    """Workers of earlier versions wrote reasons as they were raised: only what was shown, under pseudonyms, is taken along."""
    old = make_study("old")
    searched(old)
    new = make_study("new")
    start_from(new, old, tree)
    assert new.trials[6].user_attrs == {"from": {"study": "old", "number": 6}}
    with new.storage.engine.connect() as connection:
        notes = connection.scalars(
            sa.text("select value_json from trial_system_attributes where key = :key"), {"key": NOTE}
        )
        said = list(notes)
    assert len(said) == 7
    assert "why" not in str(said)


def test_what_was_taken_over_can_be_taken_on(make_study: MakeStudy, tree: OutputTree) -> None:
    """A third study knows where the files really are."""
    old, middle, new = (make_study(name) for name in ("old", "middle", "new"))
    searched(old)
    write_record(old, 5)
    start_from(middle, old, tree)
    run_trial(middle, {"lr": 5e-3}, [0.9] * 3, Ending.COMPLETE)
    start_from(new, middle, tree)
    origins = [trial.user_attrs["from"] for trial in new.trials]
    assert origins[5] == {"study": "old", "number": 5}
    assert origins[7] == {"study": "middle", "number": 7}
    assert new.folder.trial(5).record.exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"folds": "g"}, "other folds"), ({"data": "e", "folds": "g"}, "other data"), ({"epochs": 7}, "other epochs")],
)
def test_another_experiment_gets_the_best_configurations_queued(
    make_study: MakeStudy, tree: OutputTree, changed: dict[str, Any], said: str
) -> None:
    """After the defaults, and only those that its space has; the first trial that a worker claims is the defaults' one."""
    old = make_study("old")
    searched(old)
    narrower = {"lr": {"type": "float", "low": 1e-5, "high": 5.5e-4, "log": True}}  # without the best one
    new = make_study("new", search=narrower, **changed)
    queue_defaults(new)  # lr 1e-4: the sixth best
    taken = start_from(new, old, tree)
    assert taken.queued == (1, 2, 3, 4)
    assert taken.in_words() == f"from old: no scores ({said}); its best 4 configurations are queued"
    waiting = [trial.system_attrs["fixed_params"]["lr"] for trial in new.trials]
    assert waiting == pytest.approx([1e-4, 5e-4, 4e-4, 3e-4, 2e-4])
    assert {trial.state for trial in new.trials} == {TrialState.WAITING}


def test_a_value_without_its_folds_is_not_taken_over(make_study: MakeStudy, tree: OutputTree) -> None:
    """Only trials that ran all their folds can be best, also by way of another study."""
    old, new = make_study("old"), make_study("new")
    steering.add_finished(
        old.storage.engine, old.registration.study_id, state=TrialState.COMPLETE, value=0.99, params={"lr": 1e-3},
        distributions=old.space.distributions(["lr"]), scores={0: 0.99}, attributes={},
    )  # fmt: skip
    taken = start_from(new, old, tree)
    assert (taken.numbers, taken.unusable, taken.queued) == ((), 1, ())
