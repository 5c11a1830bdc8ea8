"""What is done about classes of unequal size: settled in one place, from the counts of the training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.config import BalanceConfig
from trainer.data.folds import Split
from trainer.data.records import Dataset
from trainer.errors import DataError, InputError

_IMBALANCE = 3  # the largest class at least so many times the smallest


@dataclass(frozen=True)
class Balance:
    """What is really used. Never both at once: that would balance twice."""

    class_weights: tuple[float, ...] | None
    """Weights in the loss, in label order."""
    sampler: Literal["weighted", "none"]


def training_counts(dataset: Dataset, split: Split) -> tuple[int, ...]:
    """Return how many images of each class *split* trains on, in label order."""
    counts = np.bincount(dataset.labels[split.train], minlength=len(dataset.class_names))
    return tuple(int(count) for count in counts)


def resolve_balance(config: BalanceConfig, counts: tuple[int, ...]) -> Balance:
    """
    Return what *config* means for *counts* training images of each class, in label order.

    Raises:
        InputError: there are not as many class weights as classes.
        DataError: automatic weights for a class without training images.
    """
    if config.class_weights not in {"none", "auto"} and len(config.class_weights) != len(counts):
        raise InputError(f"class_weights: {len(config.class_weights)} weights for {len(counts)} classes")
    imbalanced = max(counts) >= _IMBALANCE * min(counts)
    automatic = config.sampler == "auto" and config.class_weights == "none" and imbalanced
    if config.sampler == "weighted" or automatic:
        return Balance(class_weights=None, sampler="weighted")
    return Balance(class_weights=_class_weights(config, counts), sampler="none")


def _class_weights(config: BalanceConfig, counts: tuple[int, ...]) -> tuple[float, ...] | None:
    """Return the weights in the loss: none, as given, or total / (classes * count)."""
    if config.class_weights == "none":
        return None
    if config.class_weights != "auto":
        return tuple(float(weight) for weight in config.class_weights)
    if min(counts) == 0:
        raise DataError(f"class_weights: auto needs training images of every class, and the counts are {counts}")
    return tuple(sum(counts) / (len(counts) * count) for count in counts)
