"""
From labels and probabilities to the numbers that are reported, all of them equal to scikit-learn's where those exist.

Everything but the losses and the areas follows from the confusion matrix. What does not exist is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.records import ClassMetrics, Metrics

Labels = NDArray[np.int64]
Numbers = NDArray[np.float64]

_SMALLEST = float(np.finfo(np.float64).tiny)  # keeps the loss of an impossible class finite


class Ranked(Protocol):
    """What the rule of the best epoch looks at."""

    @property
    def balanced_acc_adj(self) -> float | None: ...  # noqa: D102 - see Metrics
    @property
    def kappa_quadratic(self) -> float | None: ...  # noqa: D102
    @property
    def auc_ovr(self) -> float | None: ...  # noqa: D102


def rank(metrics: Ranked) -> tuple[float, float, float]:
    """
    Return what epochs are compared by, left to right: the larger is the better, and the earliest wins a tie.

    A number that does not exist counts as minus infinity.
    """
    values = (metrics.balanced_acc_adj, metrics.kappa_quadratic, metrics.auc_ovr)
    adjusted, kappa, auc = (-np.inf if value is None else value for value in values)
    return adjusted, kappa, auc


def softmax(logits: NDArray[np.floating]) -> Numbers:
    """Return (N, C) float64 probabilities of (N, C) *logits*, in float64 so that none is rounded to 0 early."""
    exact = logits.astype(np.float64)
    powers = np.exp(exact - exact.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def evaluate(labels: Labels, probabilities: Numbers, class_names: tuple[str, ...]) -> Metrics:
    """
    Return the worth of *probabilities* (N, C) for *labels* (N,) of 0..C-1; the prediction is the largest, the first of equals.

    Classes without images, and N of 0, are allowed.
    """
    n_classes = len(class_names)
    matrix = confusion_matrix(labels, probabilities.argmax(axis=1), n_classes)
    losses = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], _SMALLEST))
    balanced, adjusted = balanced_accuracy(matrix)
    one_vs_rest = [binary_auc(labels == c, probabilities[:, c]) for c in range(n_classes)]
    return Metrics(
        loss=_mean(losses),
        acc=_ratio(int(np.trace(matrix)), int(matrix.sum())),
        balanced_acc=balanced,
        balanced_acc_adj=adjusted,
        kappa_quadratic=quadratic_kappa(matrix),
        auc_ovr=mean_of_defined(one_vs_rest),
        auc_ovo=mean_of_defined(_one_vs_one(labels, probabilities)),
        auc_classes=sum(area is not None for area in one_vs_rest),
        per_class={name: _class_metrics(matrix, losses[labels == c], c) for c, name in enumerate(class_names)},
        confusion_matrix=tuple(tuple(int(count) for count in row) for row in matrix),
        class_names=class_names,
    )


def confusion_matrix(labels: Labels, predictions: Labels, n_classes: int) -> Labels:
    """Return (C, C) counts by true class (row) and predicted class (column)."""
    return np.bincount(labels * n_classes + predictions, minlength=n_classes**2).reshape(n_classes, n_classes)


def balanced_accuracy(matrix: Labels) -> tuple[float | None, float | None]:
    """
    Return the mean recall over the classes that are present, and the same adjusted for chance: (b - 1/k) / (1 - 1/k).

    With k = 1 class present only the first exists; without images neither.
    Source: sklearn.metrics.balanced_accuracy_score.
    """
    support = matrix.sum(axis=1)
    present = support > 0
    n_present = int(present.sum())
    if n_present == 0:
        return None, None
    balanced = float(np.mean(np.diag(matrix)[present] / support[present]))
    if n_present == 1:
        return balanced, None
    chance = 1 / n_present
    return balanced, (balanced - chance) / (1 - chance)


def quadratic_kappa(matrix: Labels) -> float | None:
    """
    Return Cohen's kappa with weights (i - j)^2, or None where label and prediction are one and the same class throughout.

    Classes keep their distance also when one between them is absent: it is sklearn's with ``labels`` given.
    Source: sklearn.metrics.cohen_kappa_score(weights="quadratic", labels=range(C)).
    """
    places = np.arange(len(matrix))
    weights = (places[:, None] - places[None, :]) ** 2
    total = int(matrix.sum())
    expected = int((weights * np.outer(matrix.sum(axis=1), matrix.sum(axis=0))).sum())  # times total
    if expected == 0:
        return None
    return 1 - int((weights * matrix).sum()) * total / expected


def binary_auc(positive: NDArray[np.bool_], scores: Numbers) -> float | None:
    """
    Return the area under the ROC curve of *scores* (N,) for *positive* (N,), or None where one side is empty.

    The share of (positive, negative) pairs in the right order, ties counted half, from ranks.
    Source: Mann and Whitney (1947); sklearn.metrics.roc_auc_score.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return None
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1, ties share their mean
    above = float(ranks[positive].sum()) - n_positive * (n_positive + 1) / 2
    return above / (n_positive * n_negative)


def _one_vs_one(labels: Labels, probabilities: Numbers) -> Iterable[float | None]:
    """Yield for each pair of classes the mean of the two areas, each class's probability ranked among the pair's images."""
    for first, second in combinations(range(probabilities.shape[1]), 2):
        pair = (labels == first) | (labels == second)
        yield mean_of_defined(binary_auc(labels[pair] == c, probabilities[pair, c]) for c in (first, second))


def _class_metrics(matrix: Labels, losses: Numbers, c: int) -> ClassMetrics:
    """Return the numbers of class *c* with *losses* over its images."""
    hits, support, predicted = int(matrix[c, c]), int(matrix[c].sum()), int(matrix[:, c].sum())
    return ClassMetrics(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, support + predicted),
        loss=_mean(losses),
        support=support,
    )


def mean_of_defined(values: Iterable[float | None]) -> float | None:
    """Return the mean of those *values* that exist, None if none does."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _mean(values: Numbers) -> float | None:
    return float(values.mean()) if len(values) else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
