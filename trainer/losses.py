"""What is minimised: cross-entropy, or its ordinal form, with weights by class and label smoothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import OptimisationConfig


class ClassLoss(nn.Module):
    """
    Mean over the images of a batch, each counted with the weight of its class, divided by the sum of those weights.

    That is torch's ``CrossEntropyLoss`` with ``reduction="mean"``. A batch may come in parts: `forward` gives the sum over a
    part and `total_weight` of the whole batch what the sums are divided by, so that parts make the same mean.
    """

    targets: Tensor | None
    weights: Tensor

    def __init__(self, weights: Tensor, label_smoothing: float, targets: Tensor | None) -> None:
        """
        Args:
            weights: (C,) float32, of each class.
            label_smoothing: share of the target spread evenly over all classes, 0..1.
            targets: (C, C) float32, for each true class (row) the share of every class in the target; None for the true
                class alone.
        """
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", weights)
        self.register_buffer("targets", targets)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum over (B, C) float32 *logits* for (B,) *labels*: a scalar."""
        if self.targets is None:
            return functional.cross_entropy(
                logits, labels, weight=self.weights, label_smoothing=self.label_smoothing, reduction="sum"
            )
        soft = self.targets[labels]  # (B, C)
        losses = functional.cross_entropy(logits, soft, label_smoothing=self.label_smoothing, reduction="none")
        return (losses * self.weights[labels]).sum()

    def total_weight(self, labels: Tensor) -> Tensor:
        """Return the sum of the weights of (B,) *labels*: a scalar."""
        return self.weights[labels].sum()


def build_loss(config: OptimisationConfig, n_classes: int, class_weights: tuple[float, ...] | None) -> ClassLoss:
    """Return the loss that *config* asks for, on the processor; without *class_weights* every class counts 1."""
    weights = torch.ones(n_classes) if class_weights is None else torch.tensor(class_weights)
    targets = ordinal_targets(n_classes, config.ordinal_spread) if config.loss == "ordinal" else None
    return ClassLoss(weights, config.label_smoothing, targets)


def ordinal_targets(n_classes: int, spread: float) -> Tensor:
    """
    Return (C, C) float32 targets: for true class i, class j gets a share proportional to exp(-(i - j)^2 / (2 spread^2)).

    Source: Diaz and Marathe, Soft Labels for Ordinal Regression (CVPR 2019), equation 1, with the squared distance.
    """
    places = torch.arange(n_classes, dtype=torch.float64)
    distances = (places[:, None] - places[None, :]) ** 2
    return torch.softmax(-distances / (2 * spread**2), dim=1).float()
