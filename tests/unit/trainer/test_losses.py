"""The loss equals torch's, its ordinal form equals the formula, and a batch in parts equals the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from trainer.config import OptimisationConfig
from trainer.losses import ClassLoss, build_loss, ordinal_targets

WEIGHTS = (0.5, 2.0, 1.25, 3.0)


def batch(seed: int, n_images: int = 12, n_classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n_images, n_classes, generator=generator)
    return logits, torch.randint(0, n_classes, (n_images,), generator=generator)


def mean(loss: ClassLoss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return what a step minimises."""
    result: torch.Tensor = loss(logits, labels) / loss.total_weight(labels)
    return result


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_cross_entropy_equals_torchs(smoothing: float, weights: tuple[float, ...] | None) -> None:
    """With and without weights and smoothing, on many random batches."""
    loss = build_loss(OptimisationConfig(label_smoothing=smoothing), 4, weights)
    reference = nn.CrossEntropyLoss(None if weights is None else torch.tensor(weights), label_smoothing=smoothing)
    for seed in range(20):
        logits, labels = batch(seed)
        assert torch.allclose(mean(loss, logits, labels), reference(logits, labels), rtol=1e-5)


def test_ordinal_loss_equals_the_formula() -> None:
    """Targets from distances between grades, smoothing after that, each image with its own class's weight: in NumPy."""
    config = OptimisationConfig(loss="ordinal", ordinal_spread=0.7, label_smoothing=0.1)
    loss = build_loss(config, 4, WEIGHTS)
    for seed in range(20):
        logits, labels = batch(seed)
        powers = np.exp(-((np.arange(4)[None] - labels.numpy()[:, None]) ** 2) / (2 * 0.7**2))
        targets = 0.9 * powers / powers.sum(axis=1, keepdims=True) + 0.1 / 4
        exact = logits.double().numpy()
        log_p = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
        weights = np.array(WEIGHTS)[labels.numpy()]
        expected = (weights * -(targets * log_p).sum(axis=1)).sum() / weights.sum()
        assert float(mean(loss, logits, labels)) == pytest.approx(expected, rel=1e-5)


def test_ordinal_targets_favour_near_grades() -> None:
    """A share for each class that falls with the distance, the same to both sides, and the true class alone when narrow."""
    targets = ordinal_targets(4, 0.5)
    assert torch.allclose(targets.sum(dim=1), torch.ones(4))
    assert targets[1, 0] == targets[1, 2] > targets[1, 3] > 0
    assert float(targets[1, 0] / targets[1, 1]) == pytest.approx(np.exp(-2), rel=1e-5)
    assert torch.allclose(ordinal_targets(4, 0.05), torch.eye(4))


def test_a_far_mistake_costs_more_than_a_near_one_only_in_the_ordinal_loss() -> None:
    """That is what it is for."""
    near, far = torch.tensor([[0.0, 4.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 4.0]])
    label = torch.tensor([0])
    plain, ordinal = build_loss(OptimisationConfig(), 4, None), build_loss(OptimisationConfig(loss="ordinal"), 4, None)
    assert torch.allclose(plain(near, label), plain(far, label))
    assert ordinal(near, label) < ordinal(far, label) - 0.1


@pytest.mark.parametrize("kind", ["cross-entropy", "ordinal"])
def test_parts_of_a_batch_make_the_mean_of_the_whole(kind: str) -> None:
    """Sums over parts, each divided by the weight of the whole batch, with the same gradient."""
    config = OptimisationConfig.model_validate({"loss": kind, "label_smoothing": 0.05})
    loss = build_loss(config, 4, WEIGHTS)
    logits, labels = batch(3)
    whole, parted = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    mean(loss, whole, labels).backward()
    for part in (slice(0, 5), slice(5, 12)):
        (loss(parted[part], labels[part]) / loss.total_weight(labels)).backward()
    assert whole.grad is not None
    assert parted.grad is not None
    assert torch.allclose(whole.grad, parted.grad, atol=1e-7)
