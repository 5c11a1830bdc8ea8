"""Points that fill the space evenly: Sobol's sequence, scrambled."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import qmc  # type: ignore[import-untyped]

from hpo.search_space import SearchSpace


def point(space: SearchSpace, study_seed: int, index: int) -> dict[str, Any]:
    """
    Return the point of a study's sequence with *index* (from 0): a value for every dimension, whether it will exist or not.

    Nothing is remembered from point to point, so all workers together fill the space as one would.
    """
    sequence = qmc.Sobol(len(space.dimensions), rng=np.random.default_rng(study_seed))
    if index:  # it cannot be told to skip nothing
        sequence.fast_forward(index)
    (shares,) = sequence.random(1)
    return {
        name: dimension.at(float(share))
        for (name, dimension), share in zip(space.dimensions.items(), shares, strict=True)
    }
