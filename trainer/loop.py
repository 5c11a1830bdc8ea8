"""
One pass over the training images, and the prediction of others. No files, no logs, no metrics beyond a sum.

No step waits for the device: losses, hits and skipped steps stay there until the end of the epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from trainer.augment import augment
from trainer.batches import Batch, Indices, Source, batch_bounds
from trainer.config import TrainConfig
from trainer.errors import StopRequestedError
from trainer.losses import ClassLoss
from trainer.model import Network
from trainer.precision import Precision
from trainer.protocols import StopSignal
from trainer.seeds import step_seed

Forward = Callable[[Tensor, Tensor | None], Tensor]
"""Images (B, 1, H, W), and (B, D) features of a frozen backbone where there are any, to (B, K)."""


@dataclass(frozen=True)
class Learner:
    """All that a step needs, made once a fold."""

    network: Network
    optimizer: Optimizer
    loss: ClassLoss
    precision: Precision
    source: Source
    """Of the images that are trained on and validated on."""
    micro_batch: int
    """Images that go through the network at once."""


@dataclass(frozen=True)
class Steps:
    """What the steps of an epoch gave, in order, once the device was waited for."""

    losses: NDArray[np.float64]
    """(S,) mean loss of each batch, as it was minimised."""
    hits: NDArray[np.float64]
    """(S,) images predicted right."""
    skipped: NDArray[np.bool_]
    """(S,) whether the scaler skipped the update."""
    sizes: NDArray[np.int64]
    """(S,) images."""

    @property
    def loss(self) -> float:
        """Mean over images."""
        return float(self.losses @ self.sizes / self.sizes.sum())

    @property
    def acc(self) -> float:
        """Share of images predicted right."""
        return float(self.hits.sum() / self.sizes.sum())

    @property
    def first_bad(self) -> int | None:
        """The first step whose loss is not finite."""
        bad = np.flatnonzero(~np.isfinite(self.losses))
        return int(bad[0]) if len(bad) else None


def train_step(learner: Learner, batch: Batch) -> Tensor:
    """
    Update the network once and return (3,) float32: mean loss, hits, and 1 if the update was skipped, else 0.

    A batch larger than `micro_batch` goes through the network in parts, whose gradients add up to those of its mean loss;
    batch norm sees each part alone. Detached and still on the device, so that an epoch pays for one synchronisation and not
    one per step.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    total = learner.loss.total_weight(batch.labels)
    sums = [_backward(learner, part, total) for part in _parts(batch, learner.micro_batch)]
    skipped = learner.precision.update(learner.optimizer)
    loss, hits = sums[0] if len(sums) == 1 else torch.stack(sums).sum(dim=0)
    return torch.stack((loss, hits, skipped.float()))


def _backward(learner: Learner, part: Batch, total: Tensor) -> Tensor:
    """Add the gradients of a *part* of a batch with the *total* weight; return (2,) float32: its share of the loss, and hits."""
    with learner.precision.autocast():
        logits = learner.network(part.images, part.features)
    exact = logits.float()  # (B, C): the loss in float32
    loss = learner.loss(exact, part.labels) / total
    learner.precision.backward(loss)
    hits = (exact.detach().argmax(dim=1) == part.labels).sum()
    return torch.stack((loss.detach(), hits.float()))


def _parts(batch: Batch, size: int) -> list[Batch]:
    """Return *batch* in parts of *size* images; a last one of one image joins its neighbour."""
    bounds = batch_bounds(len(batch.labels), size)
    if len(bounds) == 1:
        return [batch]
    features = batch.features
    return [
        Batch(batch.images[begin:end], batch.labels[begin:end], None if features is None else features[begin:end])
        for begin, end in bounds
    ]


def train_epoch(
    learner: Learner, order: Indices, config: TrainConfig, seeds: tuple[int, int], stop: StopSignal
) -> Steps:
    """
    Train on the images of *order* (M,) once and return what the steps gave.

    Args:
        learner: its network is changed.
        order: indices into the data set.
        config: batch size and augmentation.
        seeds: of the fold, and the number of the epoch: with the step's number they decide the augmentation.
        stop: asked before each step.

    Raises:
        StopRequestedError: somebody asked to stop; the epoch's work is lost.
    """
    learner.network.train()
    bounds = batch_bounds(len(order), config.batch_size)
    results = []
    for step, batch in enumerate(learner.source.batches(order, bounds)):
        _check(stop)
        changed = augment(batch.images, config, step_seed(*seeds, step))
        results.append(train_step(learner, replace(batch, images=changed)))
    losses, hits, skipped = torch.stack(results).double().cpu().numpy().T  # the wait for all steps
    return Steps(losses, hits, skipped > 0, np.array([end - begin for begin, end in bounds]))


@torch.inference_mode()
def predict(
    forward: Forward, source: Source, order: Indices, batch_size: int, precision: Precision, stop: StopSignal
) -> NDArray[np.float32]:
    """
    Return (M, K) float32, what *forward* gives for the images of *order* (M,), never augmented, in batches of *batch_size*.

    Args:
        forward: a network in ``eval()``, or one of its methods: images and features to (B, K).
        source: of the images.
        order: indices into the data set.
        batch_size: images at once; it decides the last bits.
        precision: of the forward pass.
        stop: asked before each batch.

    Raises:
        StopRequestedError: somebody asked to stop.
    """
    bounds = [(begin, min(begin + batch_size, len(order))) for begin in range(0, len(order), batch_size)]
    outputs = []
    for batch in source.batches(order, bounds):
        _check(stop)
        with precision.autocast():
            outputs.append(forward(batch.images, batch.features).float())
    return np.asarray(torch.cat(outputs).cpu().numpy())


def _check(stop: StopSignal) -> None:
    if stop.is_set():
        raise StopRequestedError("asked to stop; the last finished epoch is saved")
