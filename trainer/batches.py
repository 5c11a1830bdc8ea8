"""
From indices to batches: a fold is a set of indices into the data set.

Where the decoded array fits on the device it lies there once, and a batch is a gather; see `streaming` for where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.records import Dataset

Indices = NDArray[np.int64]
Bounds = list[tuple[int, int]]
"""Begin and end of each batch in an order."""


@dataclass(frozen=True)
class Batch:
    """Some images."""

    images: Tensor
    """(B, 1, H, W) uint8, on the device."""
    labels: Tensor
    """(B,) int64, on the device."""
    features: Tensor | None = None
    """(B, D) float32, on the device: vectors of a frozen backbone, where the data set has them."""


class Source(Protocol):
    """Where batches come from: an array that lies on the device, or images that are read while the device computes."""

    def batches(self, order: Indices, bounds: Bounds) -> Iterator[Batch]:
        """Yield the images at ``order[begin:end]`` for each of *bounds*; *order* are indices into the data set."""
        ...


@dataclass(frozen=True)
class Images:
    """All images of a data set, on the device."""

    pixels: Tensor
    """(N, H, W) uint8."""
    labels: Tensor
    """(N,) int64."""
    features: Tensor | None = None
    """(N, D) float32."""

    def batches(self, order: Indices, bounds: Bounds) -> Iterator[Batch]:
        """Yield the images at ``order[begin:end]`` for each of *bounds*: each batch is a gather on the device."""
        indices = torch.from_numpy(order).to(self.labels.device)
        for begin, end in bounds:
            yield self.batch(indices[begin:end])

    @property
    def n_bytes(self) -> int:
        """Bytes of the pixels and the features."""
        return self.pixels.nbytes + (0 if self.features is None else self.features.nbytes)

    def batch(self, indices: Tensor) -> Batch:
        """Return the images at *indices* (B,), a tensor on the device."""
        return Batch(
            self.pixels.index_select(0, indices).unsqueeze(1),
            self.labels.index_select(0, indices),
            None if self.features is None else self.features.index_select(0, indices),
        )


_uploaded: dict[tuple[str, str | None, torch.device], Images] = {}


def images_on(dataset: Dataset, device: torch.device) -> Images:
    """
    Return *dataset* on *device*: the shared memory map itself on the processor, one upload per process on a GPU.

    The upload stays for all folds and trials of the same data, and goes when other data come.
    """
    if device.type == "cpu":
        return _tensors(dataset, device)
    key = (dataset.data_hash, dataset.features_hash, device)
    if key not in _uploaded:
        _uploaded.clear()  # before the upload: both together may not fit
        _uploaded[key] = _tensors(dataset, device)
    return _uploaded[key]


def is_uploaded(dataset: Dataset, device: torch.device) -> bool:
    """Return whether this process has *dataset* on *device*, a GPU."""
    return (dataset.data_hash, dataset.features_hash, device) in _uploaded


def uploaded_bytes(device: torch.device) -> int:
    """Return the bytes of the images that this process has on *device*, a GPU, and gives up when others come."""
    return sum(images.n_bytes for (_, _, place), images in _uploaded.items() if place == device)


def forget_uploaded() -> None:
    """Give up what was uploaded: images that are streamed because they do not fit need the room for their training."""
    _uploaded.clear()


def _tensors(dataset: Dataset, device: torch.device) -> Images:
    """Return the array and the labels of *dataset* as tensors on *device*; on the processor they share their memory."""
    if not isinstance(dataset.images, np.ndarray):
        raise TypeError("images that are decoded on demand have no array that could lie on a device: stream them")
    features = None if dataset.features is None else torch.from_numpy(dataset.features).to(device)
    return Images(torch.from_numpy(dataset.images).to(device), torch.from_numpy(dataset.labels).to(device), features)


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


def batch_bounds(n_images: int, batch_size: int) -> Bounds:
    """
    Return begin and end of each batch of *n_images* in order.

    A last batch of one image joins its neighbour: batch norm has no spread over one image, and dropping it would lose it.
    """
    begins = list(range(0, n_images, batch_size))
    if len(begins) > 1 and n_images - begins[-1] == 1:
        begins.pop()
    return list(zip(begins, [*begins[1:], n_images], strict=True))
