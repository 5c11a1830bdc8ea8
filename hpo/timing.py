"""How fast a configuration is trained on this machine: a few real epochs of the trainer's own `fit`, timed."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from trainer.batches import Indices, batch_bounds
from trainer.by_hand import Quiet
from trainer.checkpoint import LAST
from trainer.config import TrainConfig
from trainer.data.folds import Split
from trainer.data.records import Dataset
from trainer.fit import fit
from trainer.loading import settle_loading
from trainer.protocols import StopSignal
from trainer.records import EpochRecord, Resolution
from trainer.resolve import Compute, resolve

_STEPS = {"cpu": 2, "cuda": 8}
"""Of a measured epoch."""
_EPOCHS = 4
"""Measured of a kind, after one to warm up."""
_LARGEST_BATCH_ON_CPU = 16
"""A larger one is no faster there, an image."""


@dataclass(frozen=True)
class Speed:
    """What a kind of configuration takes on a device: medians over some epochs."""

    train_s: float
    """An image."""
    validate_s: float
    """An image."""
    save_s: float
    """An epoch: its checkpoint and its history."""
    checkpoint_bytes: int


@dataclass
class Clock(Quiet):
    """A listener that keeps what each epoch took."""

    n_train: int
    n_validation: int
    saves_s: list[float] = field(default_factory=list)
    records: list[EpochRecord] = field(default_factory=list)
    _at: float = field(default_factory=time.perf_counter)

    def epoch_finished(self, fold: int, record: EpochRecord, *, last: bool) -> None:  # noqa: ARG002 - there is one fold
        """Take the time: what was not trained and not validated was saved, or in the first epoch built."""
        now = time.perf_counter()
        self.saves_s.append(now - self._at - record.seconds)
        self.records.append(record)
        self._at = now

    def speed(self, size: int) -> Speed:
        """Return the medians; *size* is that of a checkpoint in bytes."""
        train_s = [1 / record.images_per_second for record in self.records]
        rest_s = [record.seconds - self.n_train * each for record, each in zip(self.records, train_s, strict=True)]
        return Speed(
            train_s=statistics.median(train_s),
            validate_s=statistics.median(rest_s) / self.n_validation,
            save_s=statistics.median(self.saves_s[1:] or self.saves_s),
            checkpoint_bytes=size,
        )


def measure(
    config: TrainConfig, dataset: Dataset, device: torch.device, stop: StopSignal, limit_s: float
) -> tuple[Speed, Resolution]:
    """
    Return what *config* takes on *device*, by training it on a few images for about *limit_s*, and one epoch at least.

    Raises:
        OutOfMemoryError: Not even two images fit.
        StopRequestedError: Asked to stop.
    """
    until = time.monotonic() + limit_s
    timed, images = _timed(config, device), _at_size(dataset, config.img_size)
    resolution = resolve(timed, images, device, threads=None)
    n_train = _STEPS[device.type] * timed.batch_size
    split = Split(0, np.resize(_evenly(images), n_train), np.resize(_evenly(images), resolution.validation_batch))
    loading = settle_loading(timed, images, device, len(batch_bounds(n_train, timed.batch_size)))
    compute = Compute(device, resolution, loading)

    def train(epochs: int, folder: Path) -> Speed:
        folder.mkdir()
        clock = Clock(n_train, len(split.validation))
        again = timed.model_copy(update={"epochs": epochs})
        fit(again, images, split, 0, compute=compute, folder=folder, listener=clock, stop=stop)
        return clock.speed((folder / LAST).stat().st_size)

    with tempfile.TemporaryDirectory() as scratch, _without_epochs_in_the_log():
        began = time.monotonic()
        warm_up = train(1, Path(scratch) / "warm_up")
        epochs = min(_EPOCHS, int((until - time.monotonic()) / (time.monotonic() - began)))
        return (train(epochs, Path(scratch) / "timed") if epochs > 0 else warm_up), resolution


def _timed(config: TrainConfig, device: torch.device) -> TrainConfig:
    """Return *config* without what takes no time but may fail on a few images, or leaves files behind."""
    plain = TrainConfig()
    names = ("lr", "backbone_lr", "warmup_epochs", "early_stop_patience", "class_weights", "embeddings_dir")
    files = ("save_every_epoch", "export_embeddings")
    largest = _LARGEST_BATCH_ON_CPU if device.type == "cpu" else config.batch_size
    changed = {"weights": "none", "sampler": "none", "batch_size": min(config.batch_size, largest)}
    return config.model_copy(update={name: getattr(plain, name) for name in (*names, *files)} | changed)


def _at_size(dataset: Dataset, side: int) -> Dataset:
    """Return the data set if its images have this *side*, else a few of them, stretched: to decode all may take hours."""
    if not isinstance(dataset.images, np.ndarray) or dataset.images.shape[1] == side:
        return dataset
    few = _evenly(dataset)[: 4 * _LARGEST_BATCH_ON_CPU]
    pixels = np.arange(side) * dataset.images.shape[1] // side
    return replace(
        dataset,
        images=np.ascontiguousarray(dataset.images[few][:, pixels][:, :, pixels]),
        records=tuple(dataset.records[index] for index in few),
        data_hash=f"{dataset.data_hash} at {side}",
        features=None,
        features_hash=None,
    )


def _evenly(dataset: Dataset) -> Indices:
    """Return (N,) indices of all images, the first of each class before the second of any."""
    labels = dataset.labels
    place = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        place[labels == label] = np.arange(np.count_nonzero(labels == label))
    return np.argsort(place, kind="stable")


@contextmanager
def _without_epochs_in_the_log() -> Iterator[None]:
    """Keep the lines of the trainer's epochs out of the log while the block runs: nobody waits for these."""
    trainer = logging.getLogger("trainer.fit")
    before = trainer.level
    trainer.setLevel(logging.WARNING)
    try:
        yield
    finally:
        trainer.setLevel(before)
