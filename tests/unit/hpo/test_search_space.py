"""The search space: which dimensions exist, how many configurations there are, and what people may ask for."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import TypeAdapter, ValidationError

from hpo.assignment import check_queued, parse_assignments
from hpo.dimensions import FloatDimension, IntDimension, values
from hpo.errors import QueuedValueError, StudyFileError
from hpo.search_space import AnyDimension, SearchSpace
from storage.claims import canonical
from trainer.config import TrainConfig

DIMENSIONS = TypeAdapter(dict[str, AnyDimension])
CATEGORIES: dict[str, list[Any]] = {
    "freeze": ["none", "backbone", "all-but-last-block"],
    "optimizer": ["adam", "adamw"],
    "amp": ["auto", "on", "off"],
    "train_augment": [True, False],
    "loss": ["cross-entropy", "ordinal"],
}


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


@st.composite
def finite_spaces(draw: st.DrawFn) -> SearchSpace:
    """Return a space of categories and grids, most of them conditional on categories before them, some of these likewise."""
    categories = draw(st.lists(st.sampled_from(list(CATEGORIES)), unique=True, min_size=1, max_size=4))
    numbers = {
        "dropout": {"type": "float", "low": 0.1, "high": draw(st.sampled_from([0.1, 0.3, 0.7])), "step": 0.1},
        "epochs": {"type": "int", "low": 3, "high": draw(st.integers(3, 6)), "log": draw(st.booleans())},
    }
    chosen = {name: {"type": "categorical", "choices": CATEGORIES[name]} for name in categories}
    chosen |= {name: numbers[name] for name in draw(st.lists(st.sampled_from(list(numbers)), unique=True))}
    dimensions: dict[str, dict[str, Any]] = {}
    for name, dimension in chosen.items():
        before = [parent for parent in dimensions if parent in CATEGORIES]
        parents = draw(st.lists(st.sampled_from(before), unique=True, max_size=2)) if before else []
        when = {
            parent: draw(st.lists(st.sampled_from(CATEGORIES[parent]), unique=True, min_size=1)) for parent in parents
        }
        dimensions[name] = {**dimension, "when": when}
    try:
        return space(**dimensions)
    except StudyFileError:  # a condition that never holds
        reject()


@given(finite_spaces())
def test_size_counts_the_configurations_and_each_is_one(built: SearchSpace) -> None:
    """What is enumerated is distinct, valid, and as much as is counted, however dimensions depend on each other."""
    configurations = list(built.configurations())
    assert built.size() == len(configurations) == len({canonical(params) for params in configurations})
    assert all(built.contains(params) for params in configurations)
    assert configurations == list(built.configurations())


@given(finite_spaces(), st.data())
def test_part_of_a_configuration_narrows_the_space_to_those_that_have_it(
    built: SearchSpace, data: st.DataObject
) -> None:
    """What is queued may be any part of any configuration: what remains possible are all that share it, and no other."""
    whole = data.draw(st.sampled_from(list(built.configurations())))
    part = {name: whole[name] for name in data.draw(st.lists(st.sampled_from(list(whole)), unique=True))}
    check_queued(built, part)
    narrowed = built.narrowed(part)
    expected = [params for params in built.configurations() if part.items() <= params.items()]
    assert list(narrowed.configurations()) == expected
    assert narrowed.size() == len(expected)


@given(
    st.sampled_from(
        [
            FloatDimension(type="float", low=0.0, high=0.7, step=0.1),
            FloatDimension(type="float", low=1e-5, high=1e-1, log=True),
            FloatDimension(type="float", low=-3.0, high=4.0),
            FloatDimension(type="float", low=0.1, high=0.1, log=True),
            IntDimension(type="int", low=8, high=32, step=8),
            IntDimension(type="int", low=1, high=1000, log=True),
            IntDimension(type="int", low=5, high=5, log=True),
        ]
    ),
    st.floats(0, 1),
)
def test_number_lies_where_its_share_of_the_scale_is(dimension: FloatDimension | IntDimension, share: float) -> None:
    """From a share to a value and back; every value is one of the dimension's, and both ends are reached."""
    value = dimension.at(share)
    assert dimension.take(value) == value
    if dimension.low < dimension.high:
        start, end = dimension.cell(value)
        assert start - 1e-9 <= share <= end + 1e-9
    assert (dimension.at(0.0), dimension.at(1.0)) == pytest.approx((dimension.low, dimension.high))


def test_steps_are_written_as_decimals() -> None:
    """0.1 + 0.2 is the 0.3 that somebody would queue, so that the two count as one configuration."""
    dimension = FloatDimension(type="float", low=0.0, high=0.5, step=0.1)
    assert list(values(dimension)) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert dimension.take(0.1 + 0.2) == 0.3


@pytest.mark.parametrize(
    ("dimensions", "size"),
    [
        ({"lr": {"type": "float", "low": 1e-4, "high": 1e-3}}, None),
        ({"lr": {"type": "float", "low": 1e-4, "high": 1e-4}}, 1),
        ({"dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.1}}, 6),
        ({"epochs": {"type": "int", "low": 1, "high": 100_000}}, 100_000),
        ({"epochs": {"type": "int", "low": 1, "high": 100_001}}, None),
        (
            {
                "optimizer": {"type": "categorical", "choices": ["adam", "adamw"]},
                "weight_decay": {"type": "float", "low": 0, "high": 0.1, "when": {"optimizer": "adamw"}},
            },
            None,
        ),
    ],
)
def test_size_of_a_space(dimensions: dict[str, Any], size: int | None) -> None:
    """A fixed number counts one, a grid its points, and what nobody can list has no size."""
    built = space(**dimensions)
    assert built.size() == size
    if size is None:
        with pytest.raises(ValueError, match="no end"):
            built.configurations()


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({"type": "categorical", "choices": [1, 1.0]}, "choices holds a value twice"),
        ({"type": "categorical", "choices": [True, 1]}, "choices holds a value twice"),
        ({"type": "float", "low": 0.0, "high": 1.0, "step": 0.3}, "step 0.3 does not lead from 0.0 to 1.0"),
        ({"type": "float", "low": 0.0, "high": 1e300, "step": 1e-300}, "step 1e-300 is too small"),
    ],
)
def test_dimension_that_optuna_would_silently_change_is_refused(dimension: dict[str, Any], message: str) -> None:
    """Optuna stores the first of equal choices for each, and cuts a range that its step does not divide."""
    with pytest.raises(ValidationError, match=message):
        space(dropout=dimension)


def test_float_for_a_field_of_whole_numbers_is_refused() -> None:
    """Both ends of 8.0 to 16.0 would do, what lies between would not."""
    with pytest.raises(StudyFileError, match=r"search.batch_size: takes no fractions"):
        space(batch_size={"type": "float", "low": 8.0, "high": 16.0})


def test_condition_that_never_holds_is_refused() -> None:
    """A dimension that waits for two values that exclude each other, over a parent that does not exist, is a mistake."""
    with pytest.raises(StudyFileError, match=r"search.weight_decay.when: never holds: no value of 'freeze'"):
        space(
            freeze=NESTED["freeze"],
            optimizer={**NESTED["optimizer"], "when": {"freeze": "none"}},
            weight_decay={**NESTED["weight_decay"], "when": {"optimizer": "adamw", "freeze": "backbone"}},
        )


def test_assignments_are_read_by_the_kind_of_their_dimension() -> None:
    """Numbers, whole numbers, and choices of every kind; a text before anything that is written alike."""
    built = space(
        lr={"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        batch_size={"type": "int", "low": 8, "high": 32, "step": 8},
        train_augment={"type": "categorical", "choices": [True, False]},
        optimizer={"type": "categorical", "choices": ["adam", "adamw"]},
        grad_clip={"type": "categorical", "choices": [0, 0.5, 1.0]},
        weight_decay={"type": "categorical", "choices": [None, 0.01]},
    )
    read = parse_assignments(
        built,
        ["lr=1e-3", "batch_size= 16", "train_augment=True", "optimizer=adam", "grad_clip=1", "weight_decay=none"],
    )
    assert canonical(read) == canonical(
        {"lr": 0.001, "batch_size": 16, "train_augment": True, "optimizer": "adam", "grad_clip": 1.0, "weight_decay": None}
    )  # fmt: skip
    check_queued(built, read)


REFUSED = {
    "lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
    "batch_size": {"type": "int", "low": 8, "high": 32, "step": 8},
    "optimizer": {"type": "categorical", "choices": ["adam", "adamw"]},
    "weight_decay": {"type": "float", "low": 0.0, "high": 0.1, "step": 0.1, "when": {"optimizer": "adamw"}},
    "dropout": {"type": "float", "low": 0.0, "high": 0.5, "when": {"optimizer": "adam"}},
}


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["lr"], "lr=: has no value, expected FIELD=VALUE"),
        (["lr=fast"], "lr=fast: expected a number from 1e-05 to 0.001"),
        (["lr=nan"], "lr=nan: expected a number from 1e-05 to 0.001"),
        (["lr=1"], "lr=1: expected a number from 1e-05 to 0.001"),
        (["batch_size=12"], "batch_size=12: expected a whole number from 8 to 32 in steps of 8"),
        (["batch_size=8.5"], "batch_size=8.5: expected a whole number"),
        (["optimizer=sgd"], "optimizer=sgd: expected one of adam, adamw"),
        (["optimiser=adam"], "optimiser=adam: the study does not search 'optimiser', did you mean 'optimizer'?"),
        (["lr=1e-4", "lr=1e-3"], "lr=1e-3: is given twice"),
    ],
)
def test_assignment_that_names_no_value_is_refused(assignments: list[str], message: str) -> None:
    """With the field, the value, and what was expected."""
    with pytest.raises(QueuedValueError) as caught:
        parse_assignments(space(**REFUSED), assignments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("queued", "message"),
    [
        ({"lr": 0.5}, "lr=0.5: expected a number from 1e-05 to 0.001"),
        ({"lr": 10**400}, "lr=1000"),
        ({"lr": float("nan")}, "lr=nan: expected a number"),
        ({"lr": True}, "lr=true: expected a number"),
        ({"lr": "0.0001\n"}, "lr=0.0001 : expected a number"),
        ({"batch_size": 12}, "batch_size=12: expected a whole number from 8 to 32 in steps of 8"),
        ({"optimizer": ["adam"]}, "optimizer=['adam']: expected one of adam, adamw"),
        ({"optimizer": None}, "optimizer=none: expected one of adam, adamw"),
        ({"weigth_decay": 0.1}, "weigth_decay=0.1: the study does not search 'weigth_decay', did you mean 'weight_decay'?"),
        ({"weight_decay": 0.1, "optimizer": "adam"}, "weight_decay=0.1: exists only where optimizer is adamw, not adam"),
        ({"weight_decay": 0.1, "dropout": 0.1}, "weight_decay=0.1: exists only at values of optimizer at which others"),
    ],
)  # fmt: skip
def test_queued_value_that_the_space_does_not_have_is_refused(queued: dict[str, Any], message: str) -> None:
    """Optuna would use what is out of range and drop what it does not know; here it is one line that says what is wrong."""
    with pytest.raises(QueuedValueError) as caught:
        check_queued(space(**REFUSED), queued)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_queued_dimension_decides_those_that_it_depends_on() -> None:
    """A weight decay alone says which optimiser and which freezing, or which of them, are meant."""
    built = space(**NESTED)
    check_queued(built, {"weight_decay": 0.01})
    narrowed = built.narrowed({"weight_decay": 0.01})
    assert list(narrowed.configurations()) == [
        {"freeze": freeze, "optimizer": "adamw", "weight_decay": 0.01} for freeze in ("none", "backbone")
    ]


def test_defaults_are_the_bases_own_values(tmp_path: Path) -> None:
    """As the space writes them, where it has them and they exist; exact through JSON."""
    base = TrainConfig(
        lr=0.1 + 0.2,
        class_weights=(1.0, 2.5),
        embeddings_dir=tmp_path,
        optimizer="adamw",
        freeze="none",
        weight_decay=None,
        train_augment=True,
    )
    built = SearchSpace.build(
        base,
        DIMENSIONS.validate_python(
            {
                "lr": {"type": "float", "low": 1e-5, "high": 1.0},
                "batch_size": {"type": "int", "low": 32, "high": 64},  # the base's 16 is out of it
                "class_weights": {"type": "categorical", "choices": ["auto", "1,2.5"]},
                "embeddings_dir": {"type": "categorical", "choices": [None, str(tmp_path)]},
                "train_augment": {"type": "categorical", "choices": [False, True]},
                "weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
                "freeze": {"type": "categorical", "choices": ["backbone", "all-but-last-block"]},
                "dropout": {"type": "float", "low": 0, "high": 0.5, "when": {"freeze": "backbone"}},
                "amp": {"type": "categorical", "choices": ["auto", "off"]},
                "drop_path": {"type": "float", "low": 0, "high": 0.5, "step": 0.1, "when": {"amp": "auto"}},
                "grad_clip": {"type": "float", "low": 0, "high": 2, "when": {"amp": "off"}},
            }
        ),
    )
    defaults = built.defaults()
    assert defaults == {
        "lr": 0.1 + 0.2,
        "class_weights": "1,2.5",
        "embeddings_dir": str(tmp_path),
        "train_augment": True,
        "amp": "auto",
        "drop_path": 0.0,
    }
    assert json.loads(json.dumps(defaults)) == defaults
    assert built.configure(defaults) == base
    check_queued(built, defaults)
