"""Proposals on a real PostgreSQL: seeded by study and trial, never the same twice, stored all at once."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from pydantic import TypeAdapter

from hpo.sampling import sampler_seed, settle_parameters
from hpo.search_space import AnyDimension, SearchSpace
from hpo.study_file import SamplerSection
from storage import ledger
from storage.claims import Claim, Claims, Ending
from storage.study_storage import StudyStorage, open_storage
from trainer.config import TrainConfig

CONTINUOUS = {
    "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
}
CONDITIONAL = {
    **CONTINUOUS,
    "optimizer": {"type": "categorical", "choices": ["adam", "adamw"]},
    "dropout": {"type": "float", "low": 0.0, "high": 0.5, "when": {"optimizer": "adamw"}},
}


class Search:
    """A study with a space and a sampler, and one worker that claims."""

    def __init__(self, storage: StudyStorage, dimensions: dict[str, Any], sampler: str, name: str = "s") -> None:
        self.storage = storage
        self.name = name
        self.space = SearchSpace.build(TrainConfig(), TypeAdapter(dict[str, AnyDimension]).validate_python(dimensions))
        self.section = SamplerSection(name=sampler, startup_trials=5)
        study = optuna.create_study(storage=storage.optuna, study_name=name, direction="maximize")
        with storage.engine.begin() as connection:
            ledger.register(
                connection, study_id=study._study_id, resolved={}, data_hash="", folds_hash="", folds_csv="", budget_trials=99
            )  # fmt: skip
        self.claims = Claims(storage.engine, study._study_id, "w", "cpu", "cpu", grace_s=60)

    def claim(self) -> Claim:
        """Claim the next trial."""
        claim = self.claims.claim()
        assert isinstance(claim, Claim)
        return claim

    def propose(self, claim: Claim, study_seed: int = 1) -> dict[str, Any]:
        """Settle the parameters of a claimed trial."""
        return settle_parameters(
            self.claims,
            claim,
            self.storage.optuna,
            study_name=self.name,
            study_seed=study_seed,
            section=self.section,
            space=self.space,
        )

    def tell(self, claim: Claim, value: float) -> None:
        """Finish a trial."""
        self.claims.finish(claim, Ending.COMPLETE, value=value, attributes={})


@pytest.fixture
def storage(database_url: sa.URL) -> StudyStorage:
    """A study storage on a fresh database."""
    return open_storage(database_url, application_name="test")


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_workers_at_once_propose_differently_and_a_study_repeats_itself(storage: StudyStorage, sampler: str) -> None:
    """Eight trials that are all claimed before any is finished differ; the same study seed proposes the same again."""
    proposals = []
    for name in ("one", "again"):
        search = Search(storage, CONTINUOUS, sampler, name)
        claims = [search.claim() for _ in range(8)]
        proposals.append([search.propose(claim) for claim in claims])
    assert len({str(params) for params in proposals[0]}) == 8
    assert proposals[0] == proposals[1]


def test_parameters_outlive_the_attempt_that_proposed_them(storage: StudyStorage) -> None:
    """A trial that is taken up keeps its configuration."""
    search = Search(storage, CONTINUOUS, "tpe")
    first = search.claim()
    params = search.propose(first)
    search.claims.release(first)
    second = search.claim()
    assert second.number == first.number
    assert search.propose(second, study_seed=999) == params


def test_conditional_dimensions_reach_the_database_only_where_they_exist(storage: StudyStorage) -> None:
    """TPE in groups, past its start-up: the dependent parameter is there exactly beside its condition."""
    search = Search(storage, CONDITIONAL, "tpe")
    for _ in range(15):
        claim = search.claim()
        search.propose(claim)
        stored = storage.optuna.get_trial(claim.trial_id).params
        assert ("dropout" in stored) == (stored["optimizer"] == "adamw")
        search.tell(claim, 0.5)


def test_tpe_learns_from_what_is_finished(storage: StudyStorage) -> None:
    """On a hill in log(lr), proposals after thirty trials lie nearer to the top than the random ones at the start."""
    search = Search(storage, {"lr": CONTINUOUS["lr"]}, "tpe")
    distances = []
    for _ in range(30):
        claim = search.claim()
        distance = abs(math.log10(search.propose(claim)["lr"] / 1e-3))
        distances.append(distance)
        search.tell(claim, -distance)
    assert sum(distances[-10:]) / 10 < sum(distances[:5]) / 5 / 2


def test_space_without_anything_new_repeats(storage: StudyStorage) -> None:
    """Four configurations are all tried before one is tried again."""
    search = Search(
        storage,
        {
            "optimizer": {"type": "categorical", "choices": ["adam", "adamw"]},
            "class_weights": {"type": "categorical", "choices": ["none", "auto"]},
        },
        "random",
    )
    tried = []
    for _ in range(5):
        claim = search.claim()
        tried.append(str(search.propose(claim)))
        search.tell(claim, 0.0)
    assert len(set(tried[:4])) == 4
    assert tried[4] in tried[:4]


def test_enqueued_configuration_is_used_as_it_is(storage: StudyStorage) -> None:
    """What a script asked for is trained, and what it left open is proposed."""
    search = Search(storage, CONTINUOUS, "tpe")
    optuna.load_study(study_name="s", storage=storage.optuna).enqueue_trial({"lr": 0.01})
    params = search.propose(search.claim())
    assert params["lr"] == 0.01
    assert 0 <= params["weight_decay"] <= 0.1


def test_seeds_differ_by_study_trial_and_proposal() -> None:
    """No two of them share a seed in a thousand."""
    seeds = {
        sampler_seed(study, trial, proposal) for study in range(10) for trial in range(10) for proposal in range(10)
    }
    assert len(seeds) == 1000
