"""All configurations of a finite space, one after the other, in an order that tells nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from hpo.dimensions import FloatDimension
from hpo.errors import StudyFileError
from hpo.search_space import MOST_CONFIGURATIONS, SearchSpace
from storage.claims import canonical


def check_finite(space: SearchSpace) -> None:
    """Accept a space whose configurations can all be tried. Raises StudyFileError, with what to do about it."""
    if space.size() is not None:
        return
    for name, dimension in space.dimensions.items():
        if isinstance(dimension, FloatDimension) and dimension.count() is None:
            step = "a `step` in place of `log`" if dimension.log else "a `step`"
            raise StudyFileError(f"search.{name}: a grid needs an end: give {name} {step}, or make it categorical")
    largest = max(space.dimensions, key=lambda name: space.dimensions[name].count() or 0)
    raise StudyFileError(
        f"search.{largest}: has {space.dimensions[largest].count()} values, and the space more than"
        f" {MOST_CONFIGURATIONS} configurations, too many for a grid: give {largest} a wider `step`, or make it categorical"
    )


def next_configuration(
    space: SearchSpace, room: SearchSpace, taken: Collection[str], study_seed: int
) -> dict[str, Any] | None:
    """
    Return the first configuration that nobody has, in the study's own order of all; None if there is none.

    Args:
        space: Finite.
        room: The part of it from which it shall be.
        taken: Configurations, as canonical texts.
        study_seed: Decides the order.
    """
    configurations = list(space.configurations())
    order = np.random.default_rng(study_seed).permutation(len(configurations))
    ordered = (configurations[index] for index in order)
    return next((each for each in ordered if canonical(each) not in taken and room.contains(each)), None)
