"""When a trial of one study is a trial of another: whatever is searched and whatever is not, the configuration decides."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from hpo.search_space import AnyDimension, SearchSpace
from hpo.warm_start import Inheritance, translate
from trainer.config import TrainConfig

LR = {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}
DROPOUT = {"type": "float", "low": 0.0, "high": 0.5}
ARCH = {"type": "categorical", "choices": ["resnet18", "resnet50"]}


def space(dimensions: dict[str, Any], **base: Any) -> SearchSpace:
    """Return a space around a base configuration."""
    return SearchSpace.build(TrainConfig(**base), TypeAdapter(dict[str, AnyDimension]).validate_python(dimensions))


def test_the_same_space_keeps_the_parameters() -> None:
    """To the bit: they are the configuration's name in the database."""
    params = {"lr": 0.00012345678901234567, "arch": "resnet50"}
    assert translate(params, space({"lr": LR, "arch": ARCH}), space({"arch": ARCH, "lr": LR})) == params


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # a dimension that only the old space has must have the new base's value
        (space({"lr": LR, "dropout": DROPOUT}), space({"lr": LR}, dropout=0.25), {"lr": 0.001}),
        (space({"lr": LR, "dropout": DROPOUT}), space({"lr": LR}), None),
        # one that only the new space has takes the old base's value, if that is one of its own
        (space({"lr": LR}, dropout=0.25), space({"lr": LR, "dropout": DROPOUT}), {"lr": 0.001, "dropout": 0.25}),
        (space({"lr": LR}, dropout=0.75), space({"lr": LR, "dropout": DROPOUT}), None),
        # a weight decay that is not given is the optimiser's own
        (
            space({"lr": LR}, optimizer="adamw"),
            space({"lr": LR, "weight_decay": DROPOUT}),
            {"lr": 0.001, "weight_decay": 0.01},
        ),
        # outside the new range; another base; a base that differs only in what changes no number
        (space({"lr": LR}), space({"lr": {**LR, "high": 1e-4}}), None),
        (space({"lr": LR}, epochs=20), space({"lr": LR}, epochs=30), None),
        (space({"lr": LR}, save_every_epoch=True), space({"lr": LR}, num_workers=3), {"lr": 0.001}),
        # a condition that holds only for some configurations
        (
            space({"lr": LR}, arch="resnet18"),
            space({"arch": ARCH, "lr": LR, "dropout": {**DROPOUT, "when": {"arch": "resnet50"}}}),
            {"arch": "resnet18", "lr": 0.001},
        ),
        (
            space({"lr": LR}, arch="resnet18", dropout=0.25),
            space({"arch": ARCH, "lr": LR, "dropout": {**DROPOUT, "when": {"arch": "resnet50"}}}),
            None,
        ),
    ],
)
def test_spaces_may_differ_where_the_configuration_does_not(
    old: SearchSpace, new: SearchSpace, expected: dict[str, Any] | None
) -> None:
    """What one space searches, the other may have in its base."""
    params = {"lr": 0.001, "dropout": 0.25} if "dropout" in old.dimensions else {"lr": 0.001}
    moved = translate(params, old, new)
    assert moved == expected
    if moved is not None:
        assert new.contains(moved)


def test_a_guess_need_only_be_alike_in_what_is_searched() -> None:
    """For another data set the rest may be another one, such as the number of epochs."""
    old, new = space({"lr": LR}, epochs=20), space({"lr": LR}, epochs=30)
    assert translate({"lr": 0.001}, old, new, {"lr"}) == {"lr": 0.001}


def test_what_a_script_put_into_a_study_is_no_error() -> None:
    """A value that no configuration can have is of no use, and that is all."""
    assert translate({"lr": -1.0}, space({"lr": LR}), space({"lr": LR})) is None


@pytest.mark.parametrize(
    ("inheritance", "words"),
    [
        (
            Inheritance("old", numbers=(1, 2), unusable=3, there=1),
            "from old: 2 trials with their scores, at no cost to the budget; not taken: 3 unfinished or failed, 1 here already",
        ),
        (
            Inheritance("old", other=("folds",), queued=(1, 2)),
            "from old: no scores (other folds); its best 2 configurations are queued",
        ),
        (Inheritance("old"), "from old: no scores (it has no trials); nothing is queued"),
    ],
)
def test_what_was_taken_is_said_with_the_reason(inheritance: Inheritance, words: str) -> None:
    """One line: how much, and why not more."""
    assert inheritance.in_words() == words
