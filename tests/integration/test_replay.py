"""Which trials can be replayed, on a real PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from hpo import study as studies
from hpo.replay import NotReplayableError, recall
from hpo.study import Study
from hpo.study_file import StudyFile
from storage import ledger
from storage.claims import Claim, Claims, Ending
from storage.study_storage import open_storage
from storage.tree import OutputTree
from trainer.records import Resolution

SETTLED = Resolution(device_kind="cpu", threads=3, precision="float32", micro_batch=8, validation_batch=32, fused=False)


@pytest.fixture
def study(database_url: sa.URL, tmp_path: Path) -> Study:
    """A study of two folds, on a fresh database."""
    file = StudyFile.model_validate(
        {
            "study": "s",
            "cv": {"folds": 2},
            "search": {"lr": {"type": "float", "low": 1e-5, "high": 1e-2}},
            "budget": {"trials": 9},
        }
    )
    storage = open_storage(database_url, application_name="test")
    created = optuna.create_study(storage=storage.optuna, study_name="s", direction="maximize")
    with storage.engine.begin() as connection:
        ledger.register(
            connection,
            study_id=created._study_id,
            resolved=file.model_dump(mode="json"),
            data_hash="d",
            folds_hash="f",
            folds_csv="",
            limits=file.budget.limits(None),
        )
    return studies.load("s", OutputTree(tmp_path), storage)


def begin(study: Study, scores: list[float]) -> tuple[Claims, Claim]:
    """Let a worker begin a trial, and publish a fold for each score."""
    claims = Claims(study.storage.engine, study.registration.study_id, "w", "cpu", "cpu", grace_s=60)
    claim = claims.claim()
    assert isinstance(claim, Claim)
    params = {"lr": 1e-3 * (claim.number + 1)}
    claims.settle_parameters(claim, params, study.space.distributions(params))
    claims.settle_resolution(claim, lambda: SETTLED.model_dump(mode="json"))
    for fold, score in enumerate(scores):
        claims.publish_fold(claim, fold, score, ())
    return claims, claim


def test_a_trial_is_remembered_whole(study: Study) -> None:
    """Configuration, seeds, resolution, folds and attempts, from the database alone; a pruned trial as far as it came."""
    claims, claim = begin(study, [0.25, 0.75])
    claims.finish(claim, Ending.COMPLETE, value=0.5, attributes={})
    original = recall(study, 0)
    assert (original.value, original.whole, original.config.lr) == (0.5, True, 1e-3)
    assert original.resolution == SETTLED
    assert (original.seeds.study, original.seeds.trial) == (42, 0)
    assert [fold.score for fold in original.folds.values()] == [0.25, 0.75]
    assert [attempt.token for attempt in original.attempts] == [claim.token]

    claims, claim = begin(study, [0.125])
    claims.finish(claim, Ending.PRUNED, attributes={"reason": "hopeless"})
    pruned = recall(study, 1)
    assert (pruned.value, pruned.whole, list(pruned.folds)) == (None, False, [0])


def test_a_trial_that_cannot_be_held_against_anything_is_refused(study: Study) -> None:
    """Unknown, under way, or without a finished fold: one line says which."""
    with pytest.raises(NotReplayableError, match=r"study 's' has no trial 0: it has 0"):
        recall(study, 0)
    claims, claim = begin(study, [0.5])
    with pytest.raises(NotReplayableError, match="trial 0 is not finished: it is running"):
        recall(study, 0)
    claims.finish(claim, Ending.FAIL, attributes={"reason": "diverged"})
    assert recall(study, 0).value is None
    claims, claim = begin(study, [])
    claims.finish(claim, Ending.FAIL, attributes={"reason": "diverged"})
    with pytest.raises(NotReplayableError, match=r"trial 1 \(fail\) has no finished fold"):
        recall(study, 1)
