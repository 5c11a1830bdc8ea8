"""How images reach the device: settled once per run from the flags, the data and the device. No number depends on it."""

from __future__ import annotations

import logging
import os

import numpy as np
import torch

from trainer.batches import is_uploaded, uploaded_bytes
from trainer.config import LoadingConfig, Strict
from trainer.data.records import Dataset
from trainer.memory import free_bytes

logger = logging.getLogger(__name__)

_MOST_WORKERS = 8
"""More do not read faster, and each takes memory for what it has read ahead."""
_FURTHEST_AHEAD = 4
"""Batches that a process reads ahead: enough for the slowest one to be hidden behind the others."""


class Loading(Strict):
    """How images reach the device."""

    streamed: bool
    """Whether they are read batch by batch while the device computes; else the whole array lies on the device."""
    num_workers: int
    """Processes that read ahead; 0 reads in the process that trains."""
    prefetch_factor: int | None
    """Batches that each of them reads ahead; None is torch's own choice, and what there is without processes."""
    persistent_workers: bool
    """Whether they are kept from one pass over the images to the next."""


def settle_loading(config: LoadingConfig, dataset: Dataset, device: torch.device, n_batches: int) -> Loading:
    """
    Return how the images of *dataset* reach *device*: streamed where there is no array, or where a GPU has no room for it.

    What a flag says is taken. The rest follows from the cores and the data, or is torch's own without the heuristics.

    Args:
        config: The flags.
        dataset: The images.
        device: Where they go.
        n_batches: Batches of an epoch.
    """
    if not _is_streamed(dataset, device):
        _log_without_effect(config)
        return Loading(streamed=False, num_workers=0, prefetch_factor=None, persistent_workers=False)
    num_workers = _num_workers(config, n_batches)
    return Loading(
        streamed=True,
        num_workers=num_workers,
        prefetch_factor=_prefetch_factor(config, num_workers, n_batches),
        persistent_workers=config.persistent_workers and num_workers > 0,
    )


def free_for_training(dataset: Dataset, device: torch.device) -> int:
    """Return the bytes that a network and its steps can have on *device*, once the images of *dataset* are where they stay."""
    free = free_bytes(device)
    if device.type != "cuda" or is_uploaded(dataset, device):
        return free  # on the processor the array is a map of a file, or this process has it already
    free += uploaded_bytes(device)
    return free if _is_streamed(dataset, device) else free - dataset.n_bytes


def fits(size: int, free: int) -> bool:
    """Return whether *size* bytes of images may lie on a device with *free* bytes: half of them are for the training."""
    return 2 * size <= free


def _is_streamed(dataset: Dataset, device: torch.device) -> bool:
    """Return whether the images are read batch by batch; the map of an array serves a processor as it is."""
    if not isinstance(dataset.images, np.ndarray):
        return True
    if device.type != "cuda" or is_uploaded(dataset, device):
        return False
    return not fits(dataset.n_bytes, free_bytes(device) + uploaded_bytes(device))


def _num_workers(config: LoadingConfig, n_batches: int) -> int:
    """Return the number of reading processes: one a core that we may use, and none that would have no batch to read."""
    if config.num_workers is not None:
        return config.num_workers
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS, n_batches) if config.loader_heuristics else 0


def _prefetch_factor(config: LoadingConfig, num_workers: int, n_batches: int) -> int | None:
    """
    Return how many batches each process reads ahead.

    At most its share of the batches of an epoch, rounded down, so that a small data set is not read at once by the first few
    and thrown away when an epoch is left early; and between 1, without which nothing is read ahead, and 4.
    """
    if num_workers == 0:
        return None  # torch refuses a number
    if config.prefetch_factor is not None or not config.loader_heuristics:
        return config.prefetch_factor
    return max(1, min(_FURTHEST_AHEAD, n_batches // num_workers))


def _log_without_effect(config: LoadingConfig) -> None:
    """Say which flags do nothing where nothing is streamed."""
    given = {
        "--num-workers": config.num_workers is not None,
        "--prefetch-factor": config.prefetch_factor is not None,
        "--persistent-workers": config.persistent_workers,
    }
    if any(given.values()):
        logger.info(
            "no effect of %s: the decoded images are all at hand, and none is read ahead",
            ", ".join(name for name, is_given in given.items() if is_given),
            extra={"action": "loading"},
        )
