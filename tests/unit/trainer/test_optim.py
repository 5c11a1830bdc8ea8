"""Groups, rates and decay."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from trainer.config import TrainConfig
from trainer.model import build_network
from trainer.optim import build_optimizer, lr_factor, plateaus, set_learning_rates

Make = Callable[..., TrainConfig]


def test_schedule_equals_the_formula(config: Make) -> None:
    """20 epochs with 2 of warm-up: a half, the whole, then half a cosine that never climbs."""
    made = config(epochs=20, warmup_epochs=2, lr=1e-3, backbone_lr=1e-4)
    optimizer = build_optimizer(made, build_network(made, 3, 0))
    rates = [set_learning_rates(optimizer, made, [None] * epoch)["head"] for epoch in range(20)]
    cosine = [1e-3 / 2 * (1 + math.cos(math.pi * (epoch - 2) / 18)) for epoch in range(2, 20)]
    assert rates == pytest.approx([0.5e-3, 1e-3, *cosine])
    assert all(later <= earlier for earlier, later in pairwise(rates[2:]))


def test_without_warm_up_the_first_epoch_has_the_whole_rate(config: Make) -> None:
    """The cosine begins at 1."""
    assert lr_factor(config(epochs=5), []) == 1.0


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_scheduler_equals_torchs(config: Make, patience: int) -> None:
    """Over many random courses of the score: the rate of each epoch is what ReduceLROnPlateau makes of those before."""
    made = config(epochs=30, plateau_scheduler=True, plateau_patience=patience, plateau_factor=0.3, lr=1e-2)
    generator = random.Random(patience)  # noqa: S311
    for _ in range(50):
        scores = [round(generator.random(), 1) for _ in range(30)]  # coarse, so that equal ones occur
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=made.lr)
        reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.3, patience=patience, threshold=0, eps=0
        )
        for epoch, score in enumerate(scores):
            assert made.lr * lr_factor(made, scores[:epoch]) == pytest.approx(optimizer.param_groups[0]["lr"])
            reference.step(score)


def test_plateau_scheduler_warms_up_first_and_never_climbs_again(config: Make) -> None:
    """Epochs of the warm-up are never counted, and an objective that does not exist is no progress."""
    made = config(epochs=12, warmup_epochs=3, plateau_scheduler=True, plateau_patience=1, plateau_factor=0.5)
    factors = [lr_factor(made, [0.5, *[None] * (epoch - 1)] if epoch else []) for epoch in range(12)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625])
    assert plateaus([0.1, 0.2, 0.3, 0.4], warmup=0, patience=0) == 0


def test_fused_optimiser_takes_the_same_step(config: Make) -> None:
    """One kernel, the same numbers but for rounding."""
    stepped = []
    for fused in (False, True):
        made = config(lr=1e-2, backbone_lr=1e-2)
        network = build_network(made, 3, 0)
        optimizer = build_optimizer(made, network, fused=fused)
        assert bool(optimizer.param_groups[0]["fused"]) is fused
        network(torch.full((4, 1, 32, 32), 90, dtype=torch.uint8)).square().sum().backward()
        optimizer.step()
        stepped.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
    assert torch.allclose(stepped[0], stepped[1], atol=1e-5)


def test_each_group_has_its_own_rate(config: Make) -> None:
    """The backbone's rate is its own, by the same schedule."""
    made = config(epochs=4, lr=1e-3, backbone_lr=1e-5)
    optimizer = build_optimizer(made, build_network(made, 3, 0))
    rates = set_learning_rates(optimizer, made, [None, None])
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
    assert list(set_learning_rates(optimizer, made, [])) == ["head"]


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
