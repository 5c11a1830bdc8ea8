"""On a GPU: both kinds of mixed precision train and resume to the bit, and no step waits for the device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.artifacts import read_history
from trainer.augment import augment
from trainer.balance import Balance
from trainer.checkpoint import Origin
from trainer.config import TrainConfig
from trainer.data.folds import Split
from trainer.data.records import Dataset
from trainer.errors import OutOfMemoryError, StopRequestedError
from trainer.fit import Task, _learner, fit
from trainer.loading import Loading
from trainer.loop import train_step
from trainer.memory import measure
from trainer.records import FoldResult, Resolution
from trainer.resolve import Compute, enforce, resolve
from trainer.streaming import open_source

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none here")

Make = Callable[..., TrainConfig]
RESIDENT = Loading(streamed=False, num_workers=0, prefetch_factor=None, persistent_workers=False)
PRECISIONS = [
    {"amp_dtype": "bfloat16"},
    {"amp_dtype": "float16"},
    {"amp_dtype": "float16", "optimizer": "adam"},
    {"amp": "off", "fused_optim": True},
]


@pytest.fixture
def gpu() -> torch.device:
    """The first GPU."""
    return torch.device("cuda", 0)


@pytest.fixture
def run(dataset: Dataset, split: Split, listener: Any, gpu: torch.device, tmp_path: Path) -> Callable[..., FoldResult]:
    """A function that trains a fold of a configuration on the GPU, with what else it is given in place of the usual."""

    def call(config: TrainConfig, folder: str, *, stop: Any = None, **other: Any) -> FoldResult:
        (tmp_path / folder).mkdir(exist_ok=True)
        compute = replace(Compute(gpu, resolve(config, dataset, gpu, threads=1), RESIDENT), **other)
        signal = stop or threading.Event()
        return fit(
            config, dataset, split, 11, compute=compute, folder=tmp_path / folder, listener=listener, stop=signal
        )

    return call


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """A function after which everything that waits for the device is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def learner_of(config: TrainConfig, dataset: Dataset, split: Split, resolution: Resolution, source: Any) -> Any:
    """Return all that a step needs."""
    origin = Origin(
        config=config,
        fold=0,
        seed=1,
        data_hash="d",
        features_hash=None,
        sides_hash="s",
        resolution=resolution,
        class_names=dataset.class_names,
    )
    balance = Balance(class_weights=(1.0, 2.0, 3.0), sampler="none")
    return _learner(
        Task(origin, split.train, split.validation, dataset.labels, balance), dataset, source, source.labels.device
    )


@pytest.mark.parametrize("fields", PRECISIONS, ids=str)
def test_it_learns_and_continues_to_the_bit(
    config: Make, run: Callable[..., FoldResult], stop_after: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """The loss falls, and a fold that was interrupted equals one that was not."""
    made = config(epochs=6, backbone_lr=3e-3, dropout=0.2, **fields)
    whole = run(made, "whole")
    history = read_history(tmp_path / "whole")
    assert history[-1].train_loss < 0.9 * history[0].train_loss
    with pytest.raises(StopRequestedError):
        run(made, "stopped", stop=stop_after(20))
    assert run(made, "stopped") == whole


@pytest.mark.parametrize("fields", PRECISIONS, ids=str)
@pytest.mark.parametrize("loss", ["cross-entropy", "ordinal"])
def test_no_step_waits_for_the_device(
    config: Make,
    dataset: Dataset,
    split: Split,
    gpu: torch.device,
    no_waiting: Callable[[], None],
    fields: dict[str, Any],
    loss: str,
) -> None:
    """Gather, augmentation, forward, backward, clipping and update, in parts of a batch: torch would raise at a wait."""
    made = config(loss=loss, **fields)
    resolution = resolve(made, dataset, gpu, threads=1, micro_batch=2)
    enforce(resolution)
    data = replace(dataset, features=np.ones((len(dataset.records), 5), dtype=np.float32), features_hash="of ones")
    with open_source(data, gpu, RESIDENT) as source:
        learner = learner_of(made, data, split, resolution, source)
        learner.network.train()
        indices = torch.arange(4, device=gpu)

        def step() -> torch.Tensor:
            batch = source.batch(indices)
            return train_step(learner, replace(batch, images=augment(batch.images, made, 5)))

        step()  # the first one allocates, and makes the scaler's tensors
        no_waiting()
        result = step()
        torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(result).all()


def test_streamed_images_give_the_same_bits(config: Make, run: Callable[..., FoldResult]) -> None:
    """Uploaded once or batch by batch from pinned memory."""
    streamed = Loading(streamed=True, num_workers=2, prefetch_factor=2, persistent_workers=True)
    assert run(config(), "streamed", loading=streamed) == run(config(), "resident")


def test_too_large_a_batch_is_the_configurations_fault_and_leaves_the_memory(config: Make, gpu: torch.device) -> None:
    """Measured where nothing fits: the error is ours, and what was allocated is free again."""
    before = torch.cuda.memory_allocated(gpu)
    with pytest.raises(OutOfMemoryError):
        measure(config(arch="efficientnet_b7", img_size=4096, amp="off"), 4, torch.device("cuda", 0), "float32")
    assert torch.cuda.memory_allocated(gpu) <= before + 2**20
