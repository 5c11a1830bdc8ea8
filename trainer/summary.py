"""`summary.json`: the reproducibility record of a run, enough to do it again with one command."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from trainer.config import Strict, TrainConfig
from trainer.data.records import Dataset
from trainer.loading import Loading
from trainer.provenance import commit, versions
from trainer.records import FoldResult, Resolution
from trainer.resolve import Compute


class Summary(Strict):
    """What was run, on what, with what. Where folds differ, a list with one entry a fold."""

    seed: int
    git_commit: str | None
    git_dirty: bool | None
    epochs: int
    batch_size: int
    lr: float
    backbone_lr: float
    warmup_epochs: int
    class_weights: tuple[float, ...] | list[tuple[float, ...] | None] | None
    """Weights really used in the loss."""
    sampler: str | list[str]
    """How training images were really drawn."""
    train_samples: int | list[int]
    val_samples: int | list[int]
    best_epoch: int | list[int]
    value: float | None
    """Balanced accuracy adjusted for chance at the best epoch, mean over the folds."""
    config: TrainConfig
    versions: dict[str, str]
    device: str
    threads: int
    resolution: Resolution
    loading: Loading
    """How images reached the device."""
    loader_heuristics: bool
    """Whether what no flag said was chosen: then `batch_size`, `resolution.micro_batch` and `loading` hold what was."""
    data_hash: str
    embeddings_hash: str | None
    """Of another backbone's vectors, where there are any."""
    folds_hash: str
    rejected: dict[str, int]
    """Images and labels that were not used, by code."""
    command: str
    """Does the run again."""
    started_at: datetime
    finished_at: datetime


def summarise(
    config: TrainConfig,
    results: tuple[FoldResult, ...],
    *,
    value: float | None,
    cross_validated: bool,
    seed: int,
    compute: Compute,
    dataset: Dataset,
    folds_hash: str,
    command: str,
    started_at: datetime,
    finished_at: datetime,
) -> Summary:
    """Return the record of a run; with *cross_validated* what differs by fold is a list, else the one fold's own."""
    code = commit()
    by_fold: dict[str, list[Any]] = {
        "class_weights": [result.class_weights for result in results],
        "sampler": [result.sampler for result in results],
        "train_samples": [result.train_samples for result in results],
        "val_samples": [result.val_samples for result in results],
        "best_epoch": [result.best_epoch for result in results],
    }
    return Summary.model_validate(
        {
            **(by_fold if cross_validated else {name: values[0] for name, values in by_fold.items()}),
            "seed": seed,
            "git_commit": code.git_commit,
            "git_dirty": code.git_dirty,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "lr": config.lr,
            "backbone_lr": config.backbone_lr,
            "warmup_epochs": config.warmup_epochs,
            "value": value,
            "config": config,
            "versions": versions(),
            "device": compute.resolution.device_kind,
            "threads": compute.resolution.threads,
            "resolution": compute.resolution,
            "loading": compute.loading,
            "loader_heuristics": config.loader_heuristics,
            "data_hash": dataset.data_hash,
            "embeddings_hash": dataset.features_hash,
            "folds_hash": folds_hash,
            "rejected": dataset.rejected(),
            "command": command,
            "started_at": started_at,
            "finished_at": finished_at,
        }
    )
