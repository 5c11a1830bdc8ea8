"""
What is saved of a fold after each epoch, and how it is taken up again.

Only tensors and plain values, so that `torch.load(weights_only=True)` reads it. There is no random state among them: all
randomness is derived from the seed and the number of the epoch.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # nosec B403 # the error alone: nothing here unpickles
from typing import Any

import torch
from torch import Tensor

from trainer.batches import Indices
from trainer.config import CHANGES_NO_NUMBER, Strict, TrainConfig
from trainer.errors import InputError
from trainer.files import written_whole
from trainer.records import EpochRecord, Metrics, Resolution

logger = logging.getLogger(__name__)

LAST = "last_model.pth"
BEST = "best_model.pth"


class Origin(Strict):
    """What decides every number of a fold. A checkpoint of another origin is not continued."""

    config: TrainConfig
    fold: int
    seed: int
    """Of the fold."""
    data_hash: str
    features_hash: str | None
    """Of another backbone's vectors, where there are any."""
    sides_hash: str
    """sha256 over the images of both sides."""
    resolution: Resolution
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A fold after an epoch."""

    origin: Origin
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    history: tuple[EpochRecord, ...]
    """All epochs so far: the last of them is the checkpoint's own."""
    best_epoch: int
    best_probabilities: Tensor
    """(V, C) float64 of the validation images at the best epoch."""
    best_metrics: Metrics

    @property
    def epoch(self) -> int:
        """The last finished epoch, from 0."""
        return self.history[-1].epoch


def sides_hash(train: Indices, validation: Indices) -> str:
    """Return the sha256 over which images are trained on and which are validated on."""
    sides = (",".join(str(index) for index in side) for side in (train, validation))
    return hashlib.sha256("|".join(sides).encode()).hexdigest()


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """
    Write *checkpoint* as `last_model.pth`; as `best_model.pth` too if its epoch is the best so far, and as that of its epoch
    if each is to be kept.

    In this order: a crash in between leaves a last one that says what else it is, and `load` then makes the others again.
    """
    origin = checkpoint.origin.model_dump(mode="json")
    payload = {
        "model_state_dict": checkpoint.model,
        "optimizer_state_dict": checkpoint.optimizer,
        "scheduler_state_dict": {"last_epoch": checkpoint.epoch, "lr": checkpoint.history[-1].lr},
        "scaler_state_dict": checkpoint.scaler,
        "epoch": checkpoint.epoch,
        "best_epoch": checkpoint.best_epoch,
        "best_metrics": checkpoint.best_metrics.model_dump(mode="json"),
        "best_probabilities": checkpoint.best_probabilities,
        "config": origin.pop("config"),
        "origin": origin,
        "history": [record.model_dump(mode="json") for record in checkpoint.history],
    }
    with written_whole(folder / LAST) as temporary:
        _write(payload, temporary)
    _copy_last(checkpoint, folder)


def _write(payload: dict[str, Any], path: Path) -> None:
    """Write *payload* to *path*. Raises OSError, where torch would hide it behind one of its own: a full disk, above all."""
    with path.open("wb") as stream:
        try:
            torch.save(payload, stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _copy_last(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy `last_model.pth`, which is *checkpoint*, to the other names that it has."""
    names = [BEST] if checkpoint.best_epoch == checkpoint.epoch else []
    if checkpoint.origin.config.save_every_epoch:
        names.append(epoch_name(checkpoint.epoch))
    for name in names:
        with written_whole(folder / name) as temporary:
            shutil.copyfile(folder / LAST, temporary)


def epoch_name(epoch: int) -> str:
    """Return the name of the checkpoint of *epoch*, from 0, where each is kept."""
    return f"checkpoint_epoch_{epoch}.pth"


def load(folder: Path, origin: Origin) -> Checkpoint | None:
    """
    Return the last checkpoint in *folder*, its tensors on the processor; None where there is nothing to continue from.

    Without the best model of an earlier epoch the files of the fold could not be completed: then there is nothing either.
    Nor where the file is broken: all epochs can be trained again, and to refuse would stop the trial for ever.

    Raises:
        InputError: its origin is another one than *origin*.
    """
    path = folder / LAST
    if not path.is_file():
        return None
    try:
        checkpoint = read_checkpoint(path)
    except InputError as error:
        logger.warning("%s: the fold begins anew", error, extra={"action": "checkpoint_broken", "fold": origin.fold})
        return None
    _check_origin(path, checkpoint.origin, origin)
    _copy_last(checkpoint, folder)
    return checkpoint if (folder / BEST).is_file() else None


def read_checkpoint(path: Path) -> Checkpoint:
    """
    Return the checkpoint in *path*, its tensors on the processor. Nothing is unpickled but tensors and plain values.

    Raises:
        InputError: it cannot be read.
    """
    try:
        payload = torch.load(path, "cpu", weights_only=True)
        return Checkpoint(
            origin=Origin.model_validate({**payload["origin"], "config": payload["config"]}),
            model=payload["model_state_dict"],
            optimizer=payload["optimizer_state_dict"],
            scaler=payload["scaler_state_dict"],
            history=tuple(EpochRecord.model_validate(record) for record in payload["history"]),
            best_epoch=payload["best_epoch"],
            best_probabilities=payload["best_probabilities"],
            best_metrics=Metrics.model_validate(payload["best_metrics"]),
        )
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, UnpicklingError) as error:
        raise InputError(f"{path}: is no checkpoint of this program ({type(error).__name__})") from error


def _check_origin(path: Path, found: Origin, asked: Origin) -> None:
    """
    Accept *found* in the checkpoint *path* if it is *asked*.

    Raises:
        InputError: with the first field that differs.
    """
    for name, value in _flat(asked).items():
        if _flat(found)[name] != value:
            raise InputError(f"{path}: is of another run, whose {name} is {_flat(found)[name]!r} and not {value!r}")


def _flat(origin: Origin) -> dict[str, Any]:
    """
    Return what decides the numbers in *origin*, the fields of the configuration and the resolution among them.

    Where the vectors of another backbone lie does not: their hash says what they are.
    """
    parts = (origin, origin.config, origin.resolution)
    left_out = {"config", "resolution", "embeddings_dir", *CHANGES_NO_NUMBER}
    return {name: value for part in parts for name, value in part if name not in left_out}
