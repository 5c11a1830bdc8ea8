"""
CMA-ES: a cloud of numbers that moves towards the better ones and takes the shape of the valley.

Nothing is kept between proposals: the strategy is told all finished trials anew each time, generation after generation in
order of their numbers. Optuna's own sampler keeps a pickle of it in the database.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cmaes import CMA  # type: ignore[import-untyped]
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from hpo.dimensions import FloatDimension, IntDimension
from hpo.search_space import SearchSpace

Axes = Mapping[str, FloatDimension | IntDimension]

_SIGMA = math.sqrt(1 / 12)
"""Standard deviation of the first cloud on a scale from 0 to 1: that of the trials at random, which it is told first."""


def axes(space: SearchSpace) -> Axes:
    """Return the dimensions in which the cloud moves: numbers that every trial has, and more than one."""
    return {
        name: dimension
        for name, dimension in space.dimensions.items()
        if isinstance(dimension, FloatDimension | IntDimension) and not dimension.when and dimension.count() != 1
    }


def ask(moving: Axes, finished: Sequence[FrozenTrial], seed: int) -> dict[str, Any]:
    """
    Return a point of the cloud as it is after *finished*.

    Args:
        moving: At least one dimension.
        finished: Complete and pruned trials in order of their numbers, with a value for all of *moving*.
        seed: Of this one point.
    """
    strategy = _begin(len(moving), seed)
    size = strategy.population_size
    for start in range(0, len(finished) - size + 1, size):
        generation = sorted(finished[start : start + size], key=_rank)
        # Ranks are all that it looks at, and they are finite, whatever the values are.
        strategy.tell([(_position(moving, trial), float(rank)) for rank, trial in enumerate(generation)])
        if strategy.should_stop():  # the cloud is a point by now; it may be the wrong one
            strategy = _begin(len(moving), seed)
    shares = strategy.ask()
    return {name: dimension.at(float(share)) for (name, dimension), share in zip(moving.items(), shares, strict=True)}


def _begin(n_axes: int, seed: int) -> CMA:
    return CMA(mean=np.full(n_axes, 0.5), sigma=_SIGMA, bounds=np.tile([0.0, 1.0], (n_axes, 1)), seed=seed)


def _position(moving: Axes, trial: FrozenTrial) -> NDArray[np.float64]:
    """
    Return where a trial stands, (axes,), 0..1.

    A value of a grid stands for its whole cell, so it is put somewhere into it, the same place each time: were it always the
    middle, the cloud would shrink to it and never reach the neighbour.
    """
    cells = np.array([dimension.cell(trial.params[name]) for name, dimension in moving.items()])
    inside = np.random.default_rng(trial.number).random(len(cells))
    place: NDArray[np.float64] = cells[:, 0] + inside * (cells[:, 1] - cells[:, 0])
    return place


def _rank(trial: FrozenTrial) -> tuple[int, float, float]:
    """Return what sorts trials, the best first: a pruned one comes after all complete ones, and the sooner pruned the later."""
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        return 0, 0, -trial.value
    scores = [score for score in trial.intermediate_values.values() if math.isfinite(score)]
    return 1, -len(scores), -statistics.fmean(scores) if scores else 0.0
