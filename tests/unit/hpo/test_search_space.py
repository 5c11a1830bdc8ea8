"""The search space: which dimensions exist, and what a trial's configuration is."""

from __future__ import annotations

import random
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import TypeAdapter

from hpo.search_space import AnyDimension, SearchSpace
from trainer.config import TrainConfig

DIMENSIONS = TypeAdapter(dict[str, AnyDimension])


def space(**dimensions: dict[str, Any]) -> SearchSpace:
    """Return a space over the default configuration."""
    return SearchSpace.build(TrainConfig(), DIMENSIONS.validate_python(dimensions))


def at_random(_: str, distribution: BaseDistribution) -> Any:
    """Answer with a random value of the distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return random.choice(distribution.choices)  # noqa: S311
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low


NESTED = {
    "weight_decay": {"type": "float", "low": 1e-5, "high": 0.1, "log": True, "when": {"optimizer": "adamw"}},
    "optimizer": {"type": "categorical", "choices": ["adam", "adamw"], "when": {"freeze": ["none", "backbone"]}},
    "freeze": {"type": "categorical", "choices": ["none", "backbone", "all-but-last-block"]},
}


def test_distributions_are_optunas() -> None:
    """Floats, integers and categories with log and step become the distributions of the same name."""
    built = space(
        lr={"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
        dropout={"type": "float", "low": 0.0, "high": 0.5, "step": 0.25},
        batch_size={"type": "int", "low": 8, "high": 32, "step": 8},
        class_weights={"type": "categorical", "choices": ["none", "auto"]},
    )
    assert built.distributions(built.dimensions) == {
        "lr": FloatDistribution(1e-5, 1e-3, log=True),
        "dropout": FloatDistribution(0.0, 0.5, step=0.25),
        "batch_size": IntDistribution(8, 32, step=8),
        "class_weights": CategoricalDistribution(["none", "auto"]),
    }
    assert not built.conditional


def test_nested_conditions_hold() -> None:
    """A dimension exists exactly where those it depends on have the values it waits for, whatever the order in the file."""
    built = space(**NESTED)
    assert built.conditional
    assert list(built.dimensions) == ["freeze", "optimizer", "weight_decay"]
    seen = set()
    for _ in range(200):
        params = built.suggest(at_random)
        assert ("optimizer" in params) == (params["freeze"] != "all-but-last-block")
        assert ("weight_decay" in params) == (params.get("optimizer") == "adamw")
        seen.add(frozenset(params))
    assert len(seen) == 3


def test_configuration_is_the_base_with_the_parameters_in_place() -> None:
    """What a trial did not choose keeps the base's value."""
    built = space(**NESTED)
    config = built.configure({"freeze": "none", "optimizer": "adamw", "weight_decay": 0.05})
    assert config == TrainConfig(freeze="none", optimizer="adamw", weight_decay=0.05)


def test_corners_of_conditional_spaces_are_checked_where_they_exist() -> None:
    """A value that is only wrong beside another one is found when the study is created, not by a trial at night."""
    with pytest.raises(Exception, match=r"warmup_epochs \(3\) must be smaller than epochs \(2\)"):
        space(
            epochs={"type": "int", "low": 2, "high": 12},
            warmup_epochs={"type": "int", "low": 0, "high": 3},
        )
