"""Whether probabilities are what they say: reliability, expected calibration error, Brier score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_BINS = 10
_Z = 1.959964
"""Of a two-sided interval of 95 %."""


@dataclass(frozen=True)
class Bin:
    """Forecasts of about the same probability."""

    count: int
    forecast: float
    """Their mean, 0..1."""
    happened: float
    """The share of them that came true, 0..1."""
    interval: tuple[float, float]
    """Of 95 % around that share, as if all were independent. Source: Wilson (1927)."""


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities of N images can be believed."""

    bins: tuple[Bin, ...]
    """Of the probability of the predicted class; bins without an image are left out."""
    error: float
    """Expected calibration error, 0..1; 0 is perfect."""
    brier: float
    """Brier score over all classes, 0..2; 0 is perfect."""
    brier_of_shares: float
    """The same of a forecast that gives every image the shares of the classes: what knows nothing of an image."""


def calibration(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> Calibration:
    """Return how far *probabilities* (N, C) of *labels* (N,) of 0..C-1 can be believed; N is at least 1."""
    predicted = probabilities.argmax(axis=1)
    bins = reliability(predicted == labels, probabilities.max(axis=1))
    shares = np.bincount(labels, minlength=probabilities.shape[1]) / len(labels)
    return Calibration(
        bins=tuple(bins),
        error=expected_calibration_error(bins),
        brier=brier_score(labels, probabilities),
        brier_of_shares=float(1 - (shares**2).sum()),
    )


def reliability(happened: NDArray[np.bool_], forecasts: NDArray[np.float64], n_bins: int = N_BINS) -> list[Bin]:
    """
    Return *forecasts* (N,) of 0..1 in bins of equal width, closed at the right, with how often each *happened*.

    Source: sklearn.calibration.calibration_curve(strategy="uniform"), which leaves empty bins out too.
    """
    edges = np.linspace(0, 1, n_bins + 1)
    place = np.searchsorted(edges[1:-1], forecasts)
    bins = []
    for index in range(n_bins):
        inside = place == index
        if inside.any():
            share = float(happened[inside].mean())
            count = int(inside.sum())
            bins.append(Bin(count, float(forecasts[inside].mean()), share, _wilson(share, count)))
    return bins


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """
    Return the mean distance between what was forecast and what happened, over the bins, each counted by its images.

    Source: Naeini et al. (2015); Guo et al. (2017) for the predicted class of several.
    """
    return sum(each.count * abs(each.forecast - each.happened) for each in bins) / sum(each.count for each in bins)


def brier_score(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """
    Return the mean over images of the squared distance between *probabilities* (N, C) and the class as a vector of 0 and 1.

    Source: Brier (1950); sklearn.metrics.brier_score_loss(scale_by_half=False).
    """
    truth = np.zeros_like(probabilities)
    truth[np.arange(len(labels)), labels] = 1
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


def _wilson(share: float, count: int) -> tuple[float, float]:
    squared = _Z**2 / count
    middle = share + squared / 2
    half = _Z * math.sqrt(share * (1 - share) / count + squared / (4 * count))
    return max(0.0, (middle - half) / (1 + squared)), min(1.0, (middle + half) / (1 + squared))
