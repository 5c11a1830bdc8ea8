"""Proposals on a real PostgreSQL: never the same twice, stored all at once, and nothing else with them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution, IntDistribution
from pydantic import TypeAdapter

from hpo.errors import QueuedValueError
from hpo.sampling import settle_parameters
from hpo.search_space import AnyDimension, SearchSpace
from hpo.study_file import SamplerSection
from storage import ledger
from storage.claims import Claim, Claims, Ending, canonical
from storage.study_storage import StudyStorage, open_storage
from trainer.config import TrainConfig

CONTINUOUS = {
    "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
}
NESTED = {
    **CONTINUOUS,
    "freeze": {"type": "categorical", "choices": ["none", "backbone"]},
    "optimizer": {"type": "categorical", "choices": ["adam", "adamw"], "when": {"freeze": "none"}},
    "dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.1, "when": {"optimizer": "adamw"}},
}
SIX = {
    "optimizer": {"type": "categorical", "choices": ["adam", "adamw"]},
    "dropout": {"type": "float", "low": 0.1, "high": 0.3, "step": 0.1},
}
LISTED = {
    "lr": {"type": "categorical", "choices": [1e-4, 1e-3, 1e-2, 1e-1]},
    "epochs": {"type": "int", "low": 2, "high": 5},
}
"""Sixteen configurations, for a grid."""
SAMPLERS = ["tpe", "random", "gp", "grid", "qmc", "cmaes"]


class Search:
    """A study with a space and a sampler, and one worker that claims."""

    def __init__(self, storage: StudyStorage, dimensions: dict[str, Any], sampler: str, name: str = "s") -> None:
        self.storage = storage
        self.name = name
        self.space = SearchSpace.build(TrainConfig(), TypeAdapter(dict[str, AnyDimension]).validate_python(dimensions))
        self.section = SamplerSection(name=sampler, startup_trials=3)
        study = optuna.create_study(storage=storage.optuna, study_name=name, direction="maximize")
        with storage.engine.begin() as connection:
            ledger.register(
                connection,
                study_id=study._study_id,
                resolved={},
                data_hash="",
                folds_hash="",
                folds_csv="",
                limits=ledger.Limits(trials=99),
            )
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

    def work(self, n: int) -> list[dict[str, Any]]:
        """Work *n* trials off, one after the other; return their parameters."""
        tried = []
        for _ in range(n):
            claim = self.claim()
            tried.append(self.propose(claim))
            self.tell(claim, -tried[-1].get("lr", 0.0))
        return tried


@pytest.fixture
def storage(database_url: sa.URL) -> StudyStorage:
    """A study storage on a fresh database."""
    return open_storage(database_url, application_name="test")


def space_for(sampler: str) -> dict[str, Any]:
    """Return a space on which a sampler can work."""
    return LISTED if sampler == "grid" else NESTED


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_study_of_one_worker_repeats_itself_and_a_sampler_writes_nothing(storage: StudyStorage, sampler: str) -> None:
    """The same study twice proposes the same, past its start-up, read back from the database as it was; no attribute is left."""
    proposals = [Search(storage, space_for(sampler), sampler, name).work(6) for name in ("one", "again")]
    assert proposals[0] == proposals[1]
    assert len({canonical(params) for params in proposals[0]}) == 6
    with storage.engine.connect() as connection:
        for table in (
            "trial_system_attributes",
            "study_system_attributes",
            "trial_user_attributes",
            "study_user_attributes",
        ):
            assert connection.scalar(sa.text(f"select count(*) from {table}")) == 0  # noqa: S608 - a name from above


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_workers_at_once_propose_differently(storage: StudyStorage, sampler: str) -> None:
    """Two workers that never finish at the same time never have the same configuration, whoever proposes first."""
    search = Search(storage, space_for(sampler), sampler)
    tried = []
    for _ in range(3):
        claims = [search.claim(), search.claim()]
        tried += [search.propose(claim) for claim in reversed(claims)]
        for claim in claims:
            search.tell(claim, 0.1 * claim.number)
    assert len({canonical(params) for params in tried}) == 6
    assert all(search.space.contains(params) for params in tried)


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "qmc"])
def test_finite_space_is_covered_exactly(storage: StudyStorage, sampler: str) -> None:
    """Six trials try all six configurations, four of them claimed before any is finished; a seventh has to repeat one."""
    search = Search(storage, SIX, sampler)
    claims = [search.claim() for _ in range(4)]
    tried = [search.propose(claim) for claim in claims]
    for claim in claims:
        search.tell(claim, 0.5)
    tried += search.work(2)
    assert {canonical(params) for params in tried} == {canonical(params) for params in search.space.configurations()}
    (repeated,) = search.work(1)
    assert repeated in tried


def test_parameters_outlive_the_attempt_that_proposed_them(storage: StudyStorage) -> None:
    """A trial that is taken up keeps its configuration."""
    search = Search(storage, CONTINUOUS, "tpe")
    first = search.claim()
    params = search.propose(first)
    search.claims.release(first)
    second = search.claim()
    assert second.number == first.number
    assert search.propose(second, study_seed=999) == params


def test_workers_that_race_for_one_configuration_get_different_ones(storage: StudyStorage) -> None:
    """Six that all want the next of a grid at the same moment: the database refuses five, and then four, and so on."""
    search = Search(storage, SIX, "grid")
    claims = [search.claim() for _ in range(6)]
    with ThreadPoolExecutor(6) as workers:
        tried = list(workers.map(search.propose, claims))
    assert {canonical(params) for params in tried} == {canonical(params) for params in search.space.configurations()}


def test_what_the_database_refuses_is_proposed_anew(storage: StudyStorage) -> None:
    """Also where it cannot be seen that it is taken."""
    search = Search(storage, SIX, "grid")
    first, second = search.claim(), search.claim()
    params = search.propose(first)
    with storage.engine.begin() as connection:
        connection.execute(sa.text("delete from trial_params where trial_id = :id"), {"id": first.trial_id})
    assert search.propose(second) != params


def test_conditional_dimensions_reach_the_database_only_where_they_exist(storage: StudyStorage) -> None:
    """TPE in groups, past its start-up, as an Optuna script reads it: each parameter beside its condition, with its range."""
    search = Search(storage, NESTED, "tpe")
    search.work(12)
    study = optuna.load_study(study_name="s", storage=storage.optuna)
    for trial in study.trials:
        assert search.space.contains(trial.params)
        assert trial.distributions == search.space.distributions(trial.params)
    assert any("dropout" in trial.params for trial in study.trials)


def test_script_works_on_the_same_study(storage: StudyStorage) -> None:
    """Its trials count for a sampler, its configurations are not tried again, and what it adds otherwise does no harm."""
    search = Search(storage, SIX, "grid")
    study = optuna.load_study(study_name="s", storage=storage.optuna, sampler=optuna.samplers.RandomSampler(seed=1))

    def objective(trial: optuna.Trial) -> float:
        optimizer = trial.suggest_categorical("optimizer", ["adam", "adamw"])
        return trial.suggest_float("dropout", 0.1, 0.3, step=0.1) + (optimizer == "adam")

    study.optimize(objective, n_trials=2)
    study.add_trial(
        optuna.create_trial(
            params={"epochs": 3, "dropout": 0.9},
            distributions={"epochs": IntDistribution(1, 5), "dropout": FloatDistribution(0, 1)},
            value=0.1,
        )
    )
    theirs = {canonical({**trial.params, "dropout": round(trial.params["dropout"], 1)}) for trial in study.trials[:2]}
    ours = {canonical(params) for params in search.work(6 - len(theirs))}
    assert ours | theirs == {canonical(params) for params in search.space.configurations()}


def test_enqueued_configuration_is_used_as_it_is(storage: StudyStorage) -> None:
    """What a script asked for is trained, what it left open is proposed, and a range that it overstepped is an error."""
    search = Search(storage, CONTINUOUS, "tpe")
    study = optuna.load_study(study_name="s", storage=storage.optuna)
    study.enqueue_trial({"lr": 0.01})
    study.enqueue_trial({"lr": 5.0})
    params = search.propose(search.claim())
    assert params["lr"] == 0.01
    assert 0 <= params["weight_decay"] <= 0.1
    with pytest.raises(QueuedValueError, match=r"lr=5\.0: expected a number"):
        search.propose(search.claim())


def test_enqueued_configuration_is_new_the_first_time_and_repeats_the_second(storage: StudyStorage) -> None:
    """Somebody asked for both; but what was tried because it was asked for is no more proposed than anything else."""
    search = Search(storage, SIX, "grid")
    study = optuna.load_study(study_name="s", storage=storage.optuna)
    for _ in range(2):
        study.enqueue_trial({"optimizer": "adam", "dropout": 0.2})
    tried = search.work(7)
    assert tried[0] == tried[1] == {"optimizer": "adam", "dropout": 0.2}
    assert len({canonical(params) for params in tried[1:]}) == 6
