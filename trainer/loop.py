"""
One pass over the training images, and the prediction of others. No files, no logs, no metrics beyond a sum.

Nothing inside an epoch waits for the device: losses, hits and skipped steps stay there until its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.augment import augment
from trainer.batches import Batch, Images, Indices, batch_bounds
from trainer.config import TrainConfig
from trainer.errors import StopRequestedError
from trainer.model import Network
from trainer.precision import Precision
from trainer.protocols import StopSignal
from trainer.seeds import step_seed


@dataclass(frozen=True)
class Learner:
    """All that a step needs, made once a fold."""

    network: Network
    optimizer: Optimizer
    loss: nn.Module
    """(B, C) float32 logits and (B,) labels to a scalar."""
    precision: Precision
    images: Images


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

    Detached and still on the device, so that an epoch pays for one synchronisation and not one per step.
    """
    with learner.precision.autocast():
        logits = learner.network(batch.images)
    exact = logits.float()  # (B, C): the loss in float32
    loss = learner.loss(exact, batch.labels)
    skipped = learner.precision.step(loss, learner.optimizer)
    hits = (exact.detach().argmax(dim=1) == batch.labels).sum()
    return torch.stack((loss.detach(), hits.float(), skipped.float()))


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
    indices = torch.from_numpy(order).to(learner.images.labels.device)
    results = []
    for step, (begin, end) in enumerate(bounds):
        _check(stop)
        batch = learner.images.batch(indices[begin:end])
        changed = augment(batch.images, config, step_seed(*seeds, step))
        results.append(train_step(learner, Batch(changed, batch.labels)))
    losses, hits, skipped = torch.stack(results).double().cpu().numpy().T  # the one wait of the epoch
    return Steps(losses, hits, skipped > 0, np.array([end - begin for begin, end in bounds]))


@torch.inference_mode()
def predict(
    network: Network, images: Images, order: Indices, batch_size: int, precision: Precision, stop: StopSignal
) -> NDArray[np.float32]:
    """
    Return (M, C) float32 logits of the images of *order* (M,), never augmented, in batches of *batch_size*.

    Raises:
        StopRequestedError: somebody asked to stop.
    """
    network.eval()
    indices = torch.from_numpy(order).to(images.labels.device)
    logits = []
    for begin in range(0, len(order), batch_size):
        _check(stop)
        with precision.autocast():
            logits.append(network(images.batch(indices[begin : begin + batch_size]).images).float())
    return np.asarray(torch.cat(logits).cpu().numpy())


def _check(stop: StopSignal) -> None:
    if stop.is_set():
        raise StopRequestedError("asked to stop; the last finished epoch is saved")
