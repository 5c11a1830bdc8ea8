"""The records that training hands over: an epoch, a fold, and what was settled before the first step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config import Strict

Dtype = Literal["float32", "bfloat16", "float16"]
"""Type of a forward pass."""


class ClassMetrics(Strict):
    """One class against the rest; None where the class is absent and the number does not exist."""

    precision: float | None
    recall: float | None
    f1: float | None
    loss: float | None
    """Mean plain cross-entropy over the images of the class, in nats."""
    support: int
    """Images of the class."""


class Metrics(Strict):
    """
    What a set of predictions is worth, all from one confusion matrix and the probabilities.

    A number that does not exist (a class without images, one class only) is None, never 0.
    """

    loss: float | None
    """Plain cross-entropy, unweighted and unsmoothed, mean over images, in nats."""
    acc: float | None
    """Share of correct predictions."""
    balanced_acc: float | None
    """Mean recall over the classes that are present."""
    balanced_acc_adj: float | None
    """Balanced accuracy adjusted for chance: 0 is chance, 1 perfect. Source: sklearn balanced_accuracy_score(adjusted=True)."""
    kappa_quadratic: float | None
    """Cohen's kappa with quadratic weights. Source: sklearn cohen_kappa_score(weights="quadratic")."""
    auc_ovr: float | None
    """Area under the ROC curve, one class against the rest, macro mean over the classes that have both sides."""
    auc_ovo: float | None
    """Area under the ROC curve over pairs of classes, macro mean over the pairs that have both sides."""
    auc_classes: int
    """Number of classes that auc_ovr is the mean of."""
    per_class: dict[str, ClassMetrics]
    """By class name, in label order."""
    confusion_matrix: tuple[tuple[int, ...], ...]
    """Images by true class (row) and predicted class (column), in label order."""
    class_names: tuple[str, ...]
    """As the label file writes them, in label order."""


class EpochRecord(Strict):
    """One epoch of one fold: a record of `train_history.json`."""

    epoch: int = Field(ge=0)
    """From 0."""
    train_loss: float
    """The loss that was minimised (weighted, smoothed): the mean of the batches' losses, each counted by its images."""
    val_loss: float | None
    train_acc: float
    """Share of training images predicted right while training (augmented, dropout on)."""
    val_acc: float | None
    balanced_acc: float | None
    balanced_acc_adj: float | None
    kappa_quadratic: float | None
    auc_ovr: float | None
    auc_ovo: float | None
    lr: dict[str, float]
    """By parameter group: head, and backbone if it is trained."""
    per_class: dict[str, ClassMetrics]
    skipped_steps: int
    """Steps that the gradient scaler skipped."""
    seconds: float
    """Training and validation of this epoch."""
    images_per_second: float
    """Training images over training seconds."""
    best: bool
    """Whether this epoch is the best so far."""


class FoldResult(Strict):
    """A finished fold."""

    fold: int
    score: float | None
    """Balanced accuracy adjusted for chance at the best epoch; None where it does not exist."""
    best_epoch: int
    epochs_run: int
    """Epochs trained; fewer than asked for after an early stop."""
    metrics: Metrics
    """On the validation images, at the best epoch."""
    train_samples: int
    val_samples: int
    class_weights: tuple[float, ...] | None
    """Weights really used in the loss, in label order; None where none were."""
    sampler: Literal["weighted", "none"]
    """How training images were drawn."""


class Resolution(Strict):
    """What decides the bits beside configuration, data, folds and seeds: settled once per trial, stored, and enforced."""

    device_kind: str
    """cpu, or the name of the GPU."""
    threads: int = Field(ge=1)
    """Processor threads of a step."""
    precision: Dtype
    """Type of the forward pass."""
    micro_batch: int = Field(ge=1)
    """Images that go through the network at once while training: the batch, or less where it does not fit."""
    validation_batch: int = Field(ge=1)
    """Images of a validation batch."""
    fused: bool
    """Whether the optimiser's step is one kernel."""
