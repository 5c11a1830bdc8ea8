"""What is tried next, as a function of the seed, the number and the trials that there are; no database."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from hpo import evolution, sobol
from hpo.errors import QueuedValueError, StudyFileError
from hpo.sampling import Proposal, Situation, propose, sample, sampler_seed
from hpo.search_space import AnyDimension, SearchSpace
from hpo.study_file import SamplerSection, check_sampler
from hpo.surrogate import with_pruned_judged
from storage.claims import canonical
from trainer.config import TrainConfig

SAMPLERS = ["tpe", "random", "gp", "grid", "qmc", "cmaes"]
LR = {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}
MIXED = {
    "lr": LR,
    "dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.1},
    "epochs": {"type": "int", "low": 2, "high": 64, "log": True},
    "optimizer": {"type": "categorical", "choices": ["adam", "adamw"]},
}
NESTED = {
    "freeze": {"type": "categorical", "choices": ["none", "backbone"]},
    "optimizer": {"type": "categorical", "choices": ["adam", "adamw"], "when": {"freeze": "none"}},
    "weight_decay": {"type": "float", "low": 0.0, "high": 0.2, "step": 0.1, "when": {"optimizer": "adamw"}},
    "drop_path": {"type": "float", "low": 0.0, "high": 0.3, "step": 0.1, "when": {"freeze": "backbone"}},
}
"""Eight configurations: adam, adamw with one of three, backbone with one of four."""
CATEGORIES = {
    "optimizer": MIXED["optimizer"],
    "class_weights": {"type": "categorical", "choices": ["none", "auto"]},
    "train_augment": {"type": "categorical", "choices": [True, False]},
}
SPACES: dict[str, dict[str, Any]] = {
    "one float": {"lr": LR},
    "mixed": MIXED,
    "nested": NESTED,
    "categories": CATEGORIES,
    "nested and endless": {**NESTED, "lr": {**LR, "when": {"optimizer": ["adam", "adamw"]}}},
}
Score = Callable[[dict[str, Any]], float]


def space(dimensions: dict[str, Any]) -> SearchSpace:
    """Return a space over the default configuration."""
    return SearchSpace.build(TrainConfig(), TypeAdapter(dict[str, AnyDimension]).validate_python(dimensions))


def trial(
    built: SearchSpace,
    number: int,
    params: dict[str, Any] | None = None,
    state: TrialState = TrialState.RUNNING,
    *,
    value: float | None = None,
    folds: dict[int, float] | None = None,
    queued: dict[str, Any] | None = None,
) -> FrozenTrial:
    """Return a trial as Optuna reads it from the database."""
    now = datetime.now(UTC)
    return FrozenTrial(
        number=number,
        trial_id=number + 100,
        state=state,
        value=value,
        datetime_start=now,
        datetime_complete=now if state.is_finished() else None,
        params=params or {},
        distributions=built.distributions(params or {}),
        user_attrs={},
        system_attrs={"fixed_params": queued} if queued else {},
        intermediate_values=folds or {},
    )


def steepness(params: dict[str, Any]) -> float:
    """Return a score that depends on every parameter, with its peak at lr=0.001 and small numbers."""
    return -sum(
        (math.log10(value) + 3) ** 2 if name == "lr" else float(len(str(value))) for name, value in params.items()
    )


def search(
    built: SearchSpace, sampler: str, n: int, *, seed: int = 1, score: Score = steepness, startup: int = 3
) -> list[Proposal]:
    """Return what one worker is proposed in a study of *n* trials, of which every fifth is pruned and every eleventh fails."""
    section = SamplerSection.model_validate({"name": sampler, "startup_trials": startup})
    others: list[FrozenTrial] = []
    proposals = []
    for number in range(n):
        proposal = propose(Situation(trial(built, number), others, seed, section, built))
        params, reached = proposal.params, score(proposal.params)
        if number % 11 == 10:
            others.append(trial(built, number, params, TrialState.FAIL))
        elif number % 5 == 4:
            others.append(trial(built, number, params, TrialState.PRUNED, folds={0: reached}))
        else:
            others.append(trial(built, number, params, TrialState.COMPLETE, value=reached))
        proposals.append(proposal)
    return proposals


@pytest.mark.parametrize(
    ("sampler", "name"),
    [(sampler, name) for sampler in SAMPLERS for name in SPACES if sampler != "grid" or space(SPACES[name]).size()],
)
def test_study_of_one_worker_repeats_exactly_and_proposes_nothing_twice(sampler: str, name: str) -> None:
    """Past its start-up, among failed and pruned trials, in every kind of space, for as long as there is something new."""
    built = space(SPACES[name])
    n = 5 if sampler == "gp" else 8  # a Gaussian process thinks for half a second
    proposals = search(built, sampler, n)
    assert proposals == search(built, sampler, n)
    assert all(built.contains(proposal.params) for proposal in proposals)
    assert not any(proposal.repetition for proposal in proposals)
    assert len({canonical(proposal.params) for proposal in proposals}) == n


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_finite_space_is_covered_before_anything_repeats(sampler: str) -> None:
    """Eight trials try all eight configurations of a nested space; only then is one tried again, and said to be."""
    built = space(NESTED)
    proposals = search(built, sampler, 9, seed=3)
    assert {canonical(proposal.params) for proposal in proposals[:8]} == {
        canonical(params) for params in built.configurations()
    }
    assert [proposal.repetition for proposal in proposals] == [False] * 8 + [True]


@pytest.mark.parametrize("sampler", [each for each in SAMPLERS if each != "grid"])
def test_another_seed_is_another_study(sampler: str) -> None:
    """Nothing of the randomness is shared between studies."""
    first, second = (search(space(MIXED), sampler, 3, seed=seed) for seed in (1, 2))
    assert all(one.params != other.params for one, other in zip(first, second, strict=True))


def test_grid_goes_through_the_space_in_the_studys_own_order() -> None:
    """Two studies try the same configurations in different orders, neither in the order of the file."""
    built = space(NESTED)
    tried = [[canonical(each.params) for each in search(built, "grid", 8, seed=seed)] for seed in (1, 2)]
    listed = [canonical(params) for params in built.configurations()]
    assert sorted(tried[0]) == sorted(tried[1]) == sorted(listed)
    assert tried[0] != tried[1]
    assert listed not in tried


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        ({"lr": LR}, "search.lr: a grid needs an end: give lr a `step` in place of `log`, or make it categorical"),
        (
            {**NESTED, "dropout": {"type": "float", "low": 0, "high": 0.5, "when": {"optimizer": "adam"}}},
            "search.dropout: a grid needs an end: give dropout a `step`, or make it categorical",
        ),
        (
            {"epochs": {"type": "int", "low": 1, "high": 2000}, "img_size": {"type": "int", "low": 32, "high": 4096}},
            "search.img_size: has 4065 values, and the space more than 100000 configurations",
        ),
    ],
)
def test_grid_over_a_space_without_end_is_refused(dimensions: dict[str, Any], message: str) -> None:
    """When the study is created, with what to do about it; other samplers do not mind."""
    for sampler in SAMPLERS:
        section = SamplerSection.model_validate({"name": sampler})
        if sampler == "grid":
            with pytest.raises(StudyFileError) as caught:
                check_sampler(section, space(dimensions))
            assert str(caught.value).startswith(message)
        else:
            check_sampler(section, space(dimensions))
    check_sampler(SamplerSection(name="grid"), space(NESTED))


def test_sobol_fills_every_cell_once() -> None:
    """Sixteen points of a sequence fall into sixteen different ones of sixteen equal parts, in every dimension and scale."""
    built = space(
        {
            "epochs": {"type": "int", "low": 3, "high": 18},
            "warmup_epochs": {"type": "int", "low": 0, "high": 1},
            "dropout": {"type": "float", "low": 0.0, "high": 0.75, "step": 0.05},
            "lr": LR,
        }
    )
    points = [sobol.point(built, 7, index) for index in range(16)]
    assert sorted(point["epochs"] for point in points) == list(range(3, 19))
    assert sorted(point["dropout"] for point in points) == pytest.approx([0.05 * step for step in range(16)])
    assert sorted(int((math.log10(point["lr"]) + 5) * 4) for point in points) == list(range(16))
    assert sum(point["warmup_epochs"] for point in points) == 8


def test_workers_at_once_share_one_sobol_sequence() -> None:
    """A trial's point depends on its number alone, whatever the others are doing."""
    built, section = space(MIXED), SamplerSection(name="qmc")
    alone = [proposal.params for proposal in search(built, "qmc", 6)]
    at_once = [propose(Situation(trial(built, number), [], 1, section, built)).params for number in reversed(range(6))]
    assert at_once[::-1] == alone


def test_cmaes_beats_chance_on_a_quadratic() -> None:
    """After sixty trials on a bowl, over five seeds: the mean of the last ten lies nearer to the bottom, and so does the best."""
    built = space(
        {"lr": LR, "dropout": {"type": "float", "low": 0, "high": 0.9}, "epochs": {"type": "int", "low": 2, "high": 66}}
    )

    def bowl(params: dict[str, Any]) -> float:
        return -(
            (math.log10(params["lr"]) / 4 + 0.5) ** 2
            + (params["dropout"] / 0.9 - 0.2) ** 2
            + (params["epochs"] / 64 - 0.8) ** 2
        )

    def reached(sampler: str, seed: int) -> list[float]:
        return [bowl(each.params) for each in search(built, sampler, 60, seed=seed, score=bowl, startup=10)]

    for seed in range(5):
        evolved, random = reached("cmaes", seed), reached("random", seed)
        assert max(evolved) > max(random)
        assert sum(evolved[-10:]) > sum(random[-10:]) / 2  # both are negative


def test_cmaes_survives_trials_that_tell_it_nothing() -> None:
    """The same place and the same score for ever: its cloud shrinks to a point and begins anew."""
    built = space(MIXED)
    moving = evolution.axes(built)
    assert list(moving) == ["lr", "dropout", "epochs"]
    (params,) = sample(built, 1, 1)
    same = [trial(built, number, params, TrialState.COMPLETE, value=0.5) for number in range(1000)]
    pruned = [trial(built, number, params, TrialState.PRUNED, folds={0: math.nan}) for number in range(50)]
    for history in (same, pruned):
        asked = evolution.ask(moving, history, seed=1)
        assert built.contains({**asked, "optimizer": "adam"})


def test_cmaes_keeps_reaching_the_neighbours_of_a_grid() -> None:
    """A hundred trials in one cell of a coarse grid do not shut the others out."""
    built = space({"batch_size": {"type": "int", "low": 8, "high": 32, "step": 8}, "lr": LR})
    tried = [{**params, "batch_size": 16} for params in sample(built, 1, 100)]
    history = [
        trial(built, number, params, TrialState.COMPLETE, value=steepness({"lr": params["lr"]}))
        for number, params in enumerate(tried)
    ]
    asked = [evolution.ask(evolution.axes(built), history, seed)["batch_size"] for seed in range(50)]
    assert 5 < sum(size != 16 for size in asked) < 25


@pytest.mark.parametrize(("sampler", "n"), [("tpe", 40), ("gp", 10)])
def test_models_propose_near_the_peak(sampler: str, n: int) -> None:
    """After some trials on a hill in log(lr) they know where it is better than chance does."""
    built = space({"lr": LR})
    distances = [abs(math.log10(each.params["lr"]) + 3) for each in search(built, sampler, n, startup=5)]
    assert sum(distances[-5:]) < sum(distances[:5]) / 2


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_startup_is_counted_in_trials_that_say_something(sampler: str) -> None:
    """Complete and pruned trials end it; running and failed ones do not."""
    built = space(MIXED)
    section = SamplerSection.model_validate({"name": sampler, "startup_trials": 7})
    chance = sample(built, 1, 9)

    def proposed(silent: int, **informative: int) -> dict[str, Any]:
        states = [TrialState.FAIL] * silent
        states += [TrialState.COMPLETE] * informative["complete"] + [TrialState.PRUNED] * informative["pruned"]
        others = [
            trial(built, number, params, state, value=0.1 * number if state == TrialState.COMPLETE else None)
            for number, (state, params) in enumerate(zip(states, chance, strict=False))
        ]
        return propose(Situation(trial(built, 8), others, 1, section, built)).params

    assert proposed(2, complete=4, pruned=2) == chance[8]
    assert proposed(0, complete=5, pruned=2) != chance[8]


def test_gp_sees_pruned_trials_as_no_better_than_the_middle() -> None:
    """Their folds' mean where it is low, the median of the complete where it is high or unknown; without any, not at all."""
    built = space({"lr": LR})
    complete = [
        trial(built, number, {"lr": 0.001}, TrialState.COMPLETE, value=value)
        for number, value in enumerate([0.1, 0.5, 0.9])
    ]
    pruned = [
        trial(built, number, {"lr": 0.01}, TrialState.PRUNED, folds=folds)
        for number, folds in enumerate([{0: 0.2, 1: 0.4}, {0: 0.8}, {}, {0: math.nan}], start=3)
    ]
    judged = with_pruned_judged([*complete, *pruned])
    assert [each.value for each in judged] == pytest.approx([0.1, 0.5, 0.9, 0.3, 0.5, 0.5, 0.5])
    assert {each.state for each in judged} == {TrialState.COMPLETE}
    assert [each.state for each in pruned] == [TrialState.PRUNED] * 4
    assert with_pruned_judged(pruned) == []


def test_gp_leaves_the_threads_of_the_training_alone() -> None:
    """They decide the bits of a trial."""
    threads = torch.get_num_threads()
    search(space({"lr": LR}), "gp", 4)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_trials_of_a_script_with_other_ranges_do_not_confuse_a_sampler(sampler: str) -> None:
    """What is no configuration of the space, or was stored with another range, costs neither a dimension nor an error."""
    built, narrow = space(MIXED), space({**MIXED, "lr": {**LR, "high": 1e-2}})
    section = SamplerSection.model_validate({"name": sampler, "startup_trials": 4})
    ours = [
        trial(built, number, params, TrialState.COMPLETE, value=steepness(params))
        for number, params in enumerate(sample(narrow, 1, 6))
    ]
    theirs = [
        trial(narrow, each.number, {**each.params, "dropout": each.params["dropout"] + 1e-12}, each.state, value=each.value)
        for each in ours
    ]  # fmt: skip
    strangers = [
        trial(space({"lr": {**LR, "high": 1.0}}), 6, {"lr": 0.5}, TrialState.COMPLETE, value=9.0),
        trial(built, 7, {"lr": 0.01}, TrialState.RUNNING),
    ]
    now = trial(built, 8)
    assert propose(Situation(now, [*theirs, *strangers], 1, section, built)) == propose(
        Situation(now, ours, 1, section, built)
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_queued_values_are_kept_and_the_rest_is_proposed(sampler: str) -> None:
    """A queued weight decay also decides the optimiser and the freezing, without which it would not exist."""
    built = space(NESTED)
    section = SamplerSection.model_validate({"name": sampler})
    others: list[FrozenTrial] = []
    for number in range(4):
        proposal = propose(Situation(trial(built, number, queued={"optimizer": "adamw"}), others, 1, section, built))
        others.append(trial(built, number, proposal.params, TrialState.COMPLETE, value=0.5))
        assert proposal.repetition == (number == 3)
        assert proposal.params["freeze"] == "none"
    assert sorted(each.params["weight_decay"] for each in others[:3]) == [0.0, 0.1, 0.2]


def test_whole_queued_configuration_is_used_again_if_somebody_asks_for_it() -> None:
    """With the numbers written as the space writes them: a script's 0 is the 0.0 that others have."""
    built, section = space(NESTED), SamplerSection()
    queued = {"freeze": "backbone", "drop_path": 0}
    proposal = propose(Situation(trial(built, 0, queued=queued), [], 1, section, built))
    assert canonical(proposal.params) == canonical({"freeze": "backbone", "drop_path": 0.0})
    assert proposal.repetition


def test_what_is_queued_is_not_proposed_to_another() -> None:
    """A configuration that waits in the queue, or that its worker has not settled yet, is as good as taken."""
    built, section = space(NESTED), SamplerSection(name="grid")
    listed = list(built.configurations())
    waiting = [
        trial(built, number, state=TrialState.WAITING if number % 2 else TrialState.RUNNING, queued=params)
        for number, params in enumerate(listed[:7])
    ]
    assert propose(Situation(trial(built, 7), waiting, 1, section, built)).params == listed[7]


def test_unchecked_queued_value_is_refused() -> None:
    """Optuna would train a learning rate of 5 with a warning."""
    built, section = space(MIXED), SamplerSection()
    with pytest.raises(QueuedValueError, match="lr=5: expected a number from 1e-05 to"):
        propose(Situation(trial(built, 0, queued={"lr": 5}), [], 1, section, built))


def test_refused_configuration_is_not_proposed_again() -> None:
    """Also where it cannot be seen among the trials yet: what the database says counts."""
    built, section = space(NESTED), SamplerSection()
    refused: set[str] = set()
    for _ in range(8):
        proposal = propose(Situation(trial(built, 0), [], 1, section, built), refused)
        assert not proposal.repetition
        refused.add(canonical(proposal.params))
    assert len(refused) == 8
    assert propose(Situation(trial(built, 0), [], 1, section, built), refused).repetition


def test_chance_finds_something_new_where_a_sampler_does_not() -> None:
    """In a space without end, a point of Sobol's that somebody queued already is replaced, the same way each time."""
    built, section = space(MIXED), SamplerSection(name="qmc")
    point = propose(Situation(trial(built, 1), [], 1, section, built)).params
    others = [trial(built, 0, point, TrialState.COMPLETE, value=0.5)]
    proposals = [propose(Situation(trial(built, 1), others, 1, section, built)) for _ in range(2)]
    assert proposals[0] == proposals[1]
    assert proposals[0].params != point
    assert not proposals[0].repetition


def test_sample_is_what_a_random_search_begins_with() -> None:
    """So that a dry run shows what will come."""
    built = space({**MIXED, "lr": {**LR, "when": {"optimizer": "adamw"}}})
    samples = sample(built, 5, 6)
    assert samples == [each.params for each in search(built, "random", 6, seed=5)]
    assert all(built.contains(params) for params in samples)


def test_seeds_differ_by_study_trial_and_proposal() -> None:
    """No two of them share a seed in a thousand."""
    seeds = {
        sampler_seed(study, trial, proposal) for study in range(10) for trial in range(10) for proposal in range(10)
    }
    assert len(seeds) == 1000
