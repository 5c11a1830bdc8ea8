"""Calibration: the numbers are scikit-learn's, and those of the papers on examples that can be done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from hpo.report.calibration import brier_score, calibration, expected_calibration_error, reliability


@pytest.mark.parametrize("seed", range(20))
def test_bins_and_brier_score_are_those_of_scikit_learn(seed: int) -> None:
    """Over random forecasts of two to five classes, some of them exactly on an edge of a bin."""
    chance = np.random.default_rng(seed)
    n, n_classes = int(chance.integers(1, 300)), int(chance.integers(2, 6))
    probabilities = chance.dirichlet(np.full(n_classes, 0.5), size=n)
    probabilities[: n // 3] = np.eye(n_classes)[chance.integers(n_classes, size=n // 3)]
    labels = chance.integers(n_classes, size=n)
    happened, forecasts = probabilities.argmax(axis=1) == labels, np.round(probabilities.max(axis=1), 1)
    share, mean = calibration_curve(happened, forecasts, n_bins=10)
    bins = reliability(happened, forecasts)
    assert [each.happened for each in bins] == pytest.approx(share.tolist())
    assert [each.forecast for each in bins] == pytest.approx(mean.tolist())
    assert sum(each.count for each in bins) == n
    expected = brier_score_loss(labels, probabilities, labels=range(n_classes), scale_by_half=False)
    assert brier_score(labels, probabilities) == pytest.approx(expected)
    found = calibration(labels, probabilities)
    base = np.tile(np.bincount(labels, minlength=n_classes) / n, (n, 1))
    assert found.brier_of_shares == pytest.approx(brier_score(labels, base))
    assert 0 <= found.error <= 1


def test_expected_calibration_error_by_hand() -> None:
    """Four forecasts of 0.9 of which two came true, and one of 0.6 that did: (4 * 0.4 + 1 * 0.4) / 5."""
    happened = np.array([True, True, False, False, True])
    bins = reliability(happened, np.array([0.9, 0.9, 0.9, 0.9, 0.6]))
    assert expected_calibration_error(bins) == pytest.approx(0.4)
    assert [each.count for each in bins] == [1, 4]


def test_perfect_forecasts_have_no_error() -> None:
    """Who is certain and right has neither a calibration error nor a Brier score."""
    labels = np.array([0, 1, 2, 1])
    found = calibration(labels, np.eye(3)[labels])
    assert (found.error, found.brier, len(found.bins)) == (0.0, 0.0, 1)


def test_intervals_are_wilsons() -> None:
    """Of 10 forecasts 8 came true: 0.490 to 0.943, as in Wilson's formula; none and all stay between 0 and 1."""
    (eight,) = reliability(np.arange(10) < 8, np.full(10, 0.75))
    assert eight.interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    (nothing,) = reliability(np.zeros(3, dtype=bool), np.full(3, 0.75))
    assert nothing.interval[0] == 0
    assert 0 < nothing.interval[1] < 1
