"""Where the value of a parameter stands on an axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from hpo.dimensions import AnyDimension, CategoricalDimension, IntDimension
from hpo.report.theme import label
from hpo.report.wording import setting

_JITTER = 0.3
_GOLDEN = 0.6180339887


@dataclass(frozen=True)
class Axis:
    """The axis of one parameter."""

    name: str
    dimension: AnyDimension

    @property
    def log(self) -> bool:
        """Whether it is logarithmic."""
        return not isinstance(self.dimension, CategoricalDimension) and self.dimension.log

    @property
    def whole(self) -> bool:
        """Whether it has whole numbers alone."""
        return isinstance(self.dimension, IntDimension)

    @property
    def choices(self) -> list[Any]:
        """The choices of a category; none of a number."""
        return list(self.dimension.choices) if isinstance(self.dimension, CategoricalDimension) else []

    def place(self, trial: FrozenTrial) -> float | None:
        """
        Return the value of *trial*, None where it has none. A choice is its number from 0, moved a little from one trial to the
        next so that they do not hide each other.
        """
        if self.name not in trial.params:
            return None
        value = trial.params[self.name]
        if not self.choices:
            return float(value)
        return self.choices.index(value) + _JITTER * (2 * ((trial.number * _GOLDEN) % 1) - 1)

    def ends(self) -> tuple[float, float]:
        """Return the lowest and the highest place on it, apart from each other."""
        if isinstance(self.dimension, CategoricalDimension):
            return -0.5, len(self.dimension.choices) - 0.5
        low, high = float(self.dimension.low), float(self.dimension.high)
        return (low, high) if low < high else (low * 0.9 - 0.1, high * 1.1 + 0.1)

    def height(self, trial: FrozenTrial) -> float | None:
        """Return the place of *trial* as a share of the axis, 0..1; None where it has none."""
        place = self.place(trial)
        if place is None:
            return None
        low, high = self.ends()
        if self.log and low > 0:
            return math.log(place / low) / math.log(high / low)
        return (place - low) / (high - low)

    def marks(self) -> list[tuple[float, str]]:
        """Return what to write beside the axis, by its share: the choices, or both ends of a range."""
        if self.choices:
            return [
                ((index + 0.5) / len(self.choices), label(setting(each))) for index, each in enumerate(self.choices)
            ]
        low, high = self.ends()
        return [(0.0, setting(low)), (1.0, setting(high))]


def axes(dimensions: Mapping[str, AnyDimension], first: Sequence[str] = ()) -> list[Axis]:
    """Return the axes of *dimensions*, those named *first* before the others."""
    order = [*(name for name in first if name in dimensions), *(name for name in dimensions if name not in first)]
    return [Axis(name, dimensions[name]) for name in order]
