"""
Epoch curves of real trials that cost about a second each: a head on the features of a frozen backbone.

Steps, losses, rates, metrics, seeds and folds are the trainer's own. What `fit` adds, checkpoints and files, is left out.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.balance import resolve_balance, training_counts
from trainer.batches import epoch_order, images_on
from trainer.config import SelectionConfig, TrainConfig
from trainer.data.cache import open_dataset
from trainer.data.division import make_folds
from trainer.data.folds import Split
from trainer.data.naming import choose_naming
from trainer.data.records import Dataset
from trainer.embeddings import read_embeddings
from trainer.loop import Learner, predict, train_epoch
from trainer.losses import build_loss
from trainer.metrics import evaluate, softmax
from trainer.model import Network
from trainer.optim import build_optimizer, set_learning_rates
from trainer.precision import build_precision
from trainer.records import Resolution
from trainer.resolve import enforce
from trainer.seeds import Seeds, epoch_seed, seed_globals

Curve = NDArray[np.float64]

_CPU = torch.device("cpu")
_VALIDATION_BATCH = 512
_SMALLEST_SIDE = 32  # pixels: the pictures are opened for their labels and patients, and nobody looks at them
_RESOLUTION = Resolution(
    device_kind="cpu", threads=1, precision="float32", micro_batch=64, validation_batch=_VALIDATION_BATCH, fused=False
)


@dataclass(frozen=True)
class Recording:
    """What trials without any pruning did."""

    curves: Curve
    """(T, K, E): balanced accuracy adjusted on the validation images of trial, fold and epoch; NaN where undefined."""
    configs: tuple[dict[str, Any], ...]
    """T of them: what was drawn."""
    seconds: float
    """For all trials."""

    @property
    def scores(self) -> Curve:
        """(T, K): each fold's score, that of its best epoch."""
        return np.asarray(np.nanmax(self.curves, axis=2))

    def write(self, path: Path) -> None:
        """Write it into *path*, without a pickle."""
        configs = np.array([json.dumps(config) for config in self.configs])
        with path.open("wb") as file:
            np.savez_compressed(file, curves=self.curves, configs=configs, seconds=self.seconds)


def read_recording(path: Path) -> Recording:
    """Return what `Recording.write` has written."""
    with np.load(path, allow_pickle=False) as content:
        configs = tuple(json.loads(str(config)) for config in content["configs"])
        return Recording(content["curves"], configs, float(content["seconds"]))


class Classifier(nn.Module):
    """A timm-like model that is a classifier alone: `Network` lays the stored features before it."""

    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012 - as timm's models have it

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(n_features, n_classes)

    def get_classifier(self) -> nn.Linear:
        """Return the head."""
        return self.classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, C) logits of no features of its own."""
        return self.classifier(images.new_empty(len(images), 0))


def open_features(csv: Path, dicom_root: Path, embeddings: Path, cache: Path) -> Dataset:
    """Return the data set of an archive with the vectors that `mammography embed` wrote into *embeddings*, and blank pictures."""
    preprocessing = TrainConfig(img_size=_SMALLEST_SIDE).preprocessing()
    naming = choose_naming(cache, pseudonyms=False)
    dataset = open_dataset(csv, dicom_root, preprocessing, cache, selection=SelectionConfig(), naming=naming)
    blank = np.zeros((len(dataset.records), 1, 1), dtype=np.uint8)
    attached = read_embeddings(embeddings).attach(dataset)
    return Dataset(blank, attached.records, attached.class_names, (), attached.data_hash, attached.features)


def draw_config(random: np.random.Generator, n_epochs: int) -> TrainConfig:
    """Return a random configuration of what a head can be searched over."""
    return TrainConfig(
        epochs=n_epochs,
        lr=float(10 ** random.uniform(-4, -1.5)),
        weight_decay=float(10 ** random.uniform(-5, -1)),
        dropout=float(random.uniform(0, 0.5)),
        label_smoothing=float(random.uniform(0, 0.2)),
        batch_size=int(random.choice([8, 16, 32, 64])),
        warmup_epochs=int(random.integers(0, 4)),
        loss=str(random.choice(["cross-entropy", "ordinal"])),
        class_weights=str(random.choice(["none", "auto"])),
        sampler=str(random.choice(["none", "weighted"])),
    )


def record(dataset: Dataset, *, n_trials: int, n_folds: int, n_epochs: int, seed: int) -> Recording:
    """Train *n_trials* random configurations, each on all folds, and return their curves."""
    enforce(_RESOLUTION)
    folds, random = make_folds(dataset, n_folds, seed), np.random.default_rng(seed)
    configs = [draw_config(random, n_epochs) for _ in range(n_trials)]
    started = time.perf_counter()
    curves = [
        [train_fold(config, dataset, folds.split(fold), Seeds(seed, number).fold(fold)) for fold in range(n_folds)]
        for number, config in enumerate(configs)
    ]
    drawn = tuple(config.model_dump(mode="json", exclude_defaults=True) for config in configs)
    return Recording(np.array(curves), drawn, time.perf_counter() - started)


def train_fold(config: TrainConfig, dataset: Dataset, split: Split, seed: int) -> list[float]:
    """Return balanced accuracy adjusted after each epoch of a fold; NaN where undefined."""
    balance = resolve_balance(config, training_counts(dataset, split))
    learner = _learner(config, dataset, balance.class_weights, seed)
    scores: list[float | None] = []
    for epoch in range(config.epochs):
        set_learning_rates(learner.optimizer, config, scores)
        seed_globals(epoch_seed(seed, epoch))
        order = epoch_order(split.train, dataset.labels, balance.sampler, epoch_seed(seed, epoch))
        train_epoch(learner, order, config, (seed, epoch), threading.Event())
        scores.append(_score(learner, dataset, split))
    return [np.nan if score is None else score for score in scores]


def _learner(config: TrainConfig, dataset: Dataset, class_weights: Sequence[float] | None, seed: int) -> Learner:
    """Return what the steps need, new from *seed*."""
    if dataset.features is None:
        raise ValueError("a head needs features")
    n_classes = len(dataset.class_names)
    seed_globals(seed)
    network = Network(Classifier(dataset.features.shape[1], n_classes), "none", config.dropout)
    return Learner(
        network=network,
        optimizer=build_optimizer(config, network),
        loss=build_loss(config, n_classes, None if class_weights is None else tuple(class_weights)),
        precision=build_precision("float32", _CPU, config.grad_clip),
        source=images_on(dataset, _CPU),
        micro_batch=config.batch_size,
    )


def _score(learner: Learner, dataset: Dataset, split: Split) -> float | None:
    """Return balanced accuracy adjusted on the validation images."""
    learner.network.eval()
    logits = predict(
        learner.network, learner.source, split.validation, _VALIDATION_BATCH, learner.precision, threading.Event()
    )
    return evaluate(dataset.labels[split.validation], softmax(logits), dataset.class_names).balanced_acc_adj
