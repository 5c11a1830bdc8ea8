"""From indices to batches: the decoded array lies on the device once, a fold is a set of indices, a batch is a gather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.records import Dataset

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Some images."""

    images: Tensor
    """(B, 1, H, W) uint8, on the device."""
    labels: Tensor
    """(B,) int64, on the device."""


@dataclass(frozen=True)
class Images:
    """All images of a data set, on the device."""

    pixels: Tensor
    """(N, H, W) uint8."""
    labels: Tensor
    """(N,) int64."""

    def batch(self, indices: Tensor) -> Batch:
        """Return the images at *indices* (B,), a tensor on the device."""
        return Batch(self.pixels.index_select(0, indices).unsqueeze(1), self.labels.index_select(0, indices))


_uploaded: dict[tuple[str, torch.device], Images] = {}


def images_on(dataset: Dataset, device: torch.device) -> Images:
    """
    Return *dataset* on *device*: the shared memory map itself on the processor, one upload per process on a GPU.

    The upload stays for all folds and trials of the same data, and goes when other data come.
    """
    if device.type == "cpu":
        return _tensors(dataset, device)
    key = (dataset.data_hash, device)
    if key not in _uploaded:
        _uploaded.clear()  # before the upload: both together may not fit
        _uploaded[key] = _tensors(dataset, device)
    return _uploaded[key]


def _tensors(dataset: Dataset, device: torch.device) -> Images:
    """Return the array and the labels of *dataset* as tensors on *device*; on the processor they share their memory."""
    return Images(torch.from_numpy(dataset.images).to(device), torch.from_numpy(dataset.labels).to(device))


def epoch_order(train: Indices, labels: NDArray[np.int64], sampler: Literal["weighted", "none"], seed: int) -> Indices:
    """
    Return the (M,) images of an epoch in order, M being the number of *train* images.

    ``none`` is a permutation of them; ``weighted`` draws with replacement, every class that is present equally often.

    Args:
        train: (M,) indices into the data set.
        labels: (N,) of the whole data set.
        sampler: how to draw.
        seed: of the epoch; nothing else decides.
    """
    generator = np.random.default_rng(seed)
    if sampler == "none":
        return generator.permutation(train)
    own = labels[train]
    weights = 1 / np.bincount(own)[own]
    return generator.choice(train, size=len(train), replace=True, p=weights / weights.sum())


def batch_bounds(n_images: int, batch_size: int) -> list[tuple[int, int]]:
    """
    Return begin and end of each batch of *n_images* in order.

    A last batch of one image joins its neighbour: batch norm has no spread over one image, and dropping it would lose it.
    """
    begins = list(range(0, n_images, batch_size))
    if len(begins) > 1 and n_images - begins[-1] == 1:
        begins.pop()
    return list(zip(begins, [*begins[1:], n_images], strict=True))
