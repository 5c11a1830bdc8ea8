"""Classes of unequal size are balanced once, never twice."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from trainer.balance import Balance, resolve_balance
from trainer.config import BalanceConfig
from trainer.errors import DataError, InputError


@pytest.mark.parametrize(
    ("fields", "counts", "expected"),
    [
        ({}, (10, 29), Balance(None, "none")),
        ({}, (10, 30), Balance(None, "weighted")),
        ({"sampler": "none"}, (10, 300), Balance(None, "none")),
        ({"sampler": "weighted"}, (10, 10), Balance(None, "weighted")),
        ({"sampler": "weighted", "class_weights": "auto"}, (10, 30), Balance(None, "weighted")),
        ({"class_weights": "auto"}, (10, 30), Balance((2.0, 2 / 3), "none")),
        ({"class_weights": "1,2.5"}, (10, 300), Balance((1.0, 2.5), "none")),
    ],
)
def test_what_is_really_used(fields: dict[str, object], counts: tuple[int, ...], expected: Balance) -> None:
    """Weighted sampling turns class weights off; auto samples from 3 to 1 on, and only without class weights."""
    assert resolve_balance(BalanceConfig.model_validate(fields), counts) == expected


def test_automatic_weights_are_scikit_learns() -> None:
    """They are total / (classes * count)."""
    counts = (7, 20, 13)
    labels = np.repeat([0, 1, 2], counts)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=labels)
    assert resolve_balance(BalanceConfig(class_weights="auto"), counts).class_weights == pytest.approx(expected)


def test_a_wrong_number_of_weights_is_refused() -> None:
    """The message says how many there are and how many there should be."""
    with pytest.raises(InputError, match="2 weights for 3 classes"):
        resolve_balance(BalanceConfig.model_validate({"class_weights": "1,2"}), (1, 2, 3))


def test_automatic_weights_need_every_class() -> None:
    """A class without training images has no weight."""
    with pytest.raises(DataError, match="every class"):
        resolve_balance(BalanceConfig(class_weights="auto"), (3, 0, 3))
