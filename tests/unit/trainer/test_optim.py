"""Groups, rates and decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from torch import nn

from trainer.config import TrainConfig
from trainer.model import build_network
from trainer.optim import build_optimizer, lr_factor, set_learning_rates

Make = Callable[..., TrainConfig]


def test_schedule_equals_the_formula(config: Make) -> None:
    """20 epochs with 2 of warm-up: a half, the whole, then half a cosine that never climbs."""
    made = config(epochs=20, warmup_epochs=2, lr=1e-3, backbone_lr=1e-4)
    optimizer = build_optimizer(made, build_network(made, 3, 0))
    rates = [set_learning_rates(optimizer, made, epoch)["head"] for epoch in range(20)]
    cosine = [1e-3 / 2 * (1 + math.cos(math.pi * (epoch - 2) / 18)) for epoch in range(2, 20)]
    assert rates == pytest.approx([0.5e-3, 1e-3, *cosine])
    assert all(later <= earlier for earlier, later in pairwise(rates[2:]))


def test_without_warm_up_the_first_epoch_has_the_whole_rate() -> None:
    """The cosine begins at 1."""
    assert lr_factor(0, warmup_epochs=0, epochs=5) == 1.0


def test_each_group_has_its_own_rate(config: Make) -> None:
    """The backbone's rate is its own, by the same schedule."""
    made = config(epochs=4, lr=1e-3, backbone_lr=1e-5)
    optimizer = build_optimizer(made, build_network(made, 3, 0))
    rates = set_learning_rates(optimizer, made, 2)
    assert rates == pytest.approx({"head": 0.5e-3, "backbone": 0.5e-5})
    assert [group["lr"] for group in optimizer.param_groups] == [rates["head"], rates["backbone"]]


def test_the_head_group_of_efficientnet_is_the_classifier_alone(config: Make) -> None:
    """Weight and bias of the classifier, and not the squeeze-excitation layers called fc."""
    made = config(arch="efficientnet_b0")
    network = build_network(made, 4, 0)
    head, backbone = (group["params"] for group in build_optimizer(made, network).param_groups)
    classifier = network.model.get_submodule("classifier")
    assert isinstance(classifier, nn.Linear)
    assert {id(each) for each in head} == {id(classifier.weight), id(classifier.bias)}
    assert len(head) + len(backbone) == len(list(network.parameters()))


def test_a_frozen_backbone_is_in_no_group(config: Make) -> None:
    """There is the head's group alone, and the record of the rates says so."""
    made = config(freeze="backbone")
    optimizer = build_optimizer(made, build_network(made, 3, 0))
    assert list(set_learning_rates(optimizer, made, 0)) == ["head"]


@pytest.mark.parametrize(
    ("optimizer", "asked", "used"), [("adamw", None, 0.01), ("adam", None, 0.0), ("adam", 0.2, 0.2)]
)
def test_weight_decay_is_the_optimisers_own_unless_given(
    config: Make, optimizer: str, asked: float | None, used: float
) -> None:
    """AdamW 0.01, Adam 0."""
    made = config(optimizer=optimizer, weight_decay=asked)
    built = build_optimizer(made, build_network(made, 3, 0))
    assert type(built).__name__.lower() == optimizer
    assert {group["weight_decay"] for group in built.param_groups} == {used}
