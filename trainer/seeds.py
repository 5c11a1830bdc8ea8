"""
Where randomness comes from: numbers derived from (study seed, first trial number, fold, epoch, step), never a state.

So there is nothing random to save in a checkpoint, and what was drawn before never changes what is drawn next.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch


def derive(*parts: int) -> int:
    """Return a 63-bit number that depends on every one of *parts* and on their order."""
    text = ",".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Seeds:
    """The seeds of one trial."""

    study: int
    """Seed of the study, or of a run by hand."""
    trial: int
    """Number of the trial's first attempt; 0 by hand."""

    def fold(self, fold: int) -> int:
        """Return the 63-bit seed of *fold*."""
        return derive(self.study, self.trial, fold)


def seed_globals(seed: int) -> None:
    """
    Seed the generators of the process: torch's on every device, Python's and NumPy's.

    The first is what a network's start, dropout and stochastic depth draw from. Nothing of ours draws from the other two; a
    library may.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is what a library would draw from


def epoch_seed(fold_seed: int, epoch: int) -> int:
    """Return the seed of an epoch: its order of images, dropout and stochastic depth."""
    return derive(fold_seed, epoch)


def step_seed(fold_seed: int, epoch: int, step: int) -> int:
    """Return the seed of a step: the augmentation of its batch."""
    return derive(fold_seed, epoch, step)
