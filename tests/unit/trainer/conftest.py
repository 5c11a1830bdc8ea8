"""A small data set that a tiny network can learn, and the plain folder and listener of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.by_hand import HandFolder
from trainer.config import TrainConfig
from trainer.data.folds import Split
from trainer.data.records import Dataset, ImageRecord
from trainer.loading import Loading
from trainer.records import EpochRecord, FoldResult, Resolution
from trainer.resolve import Compute

SIZE = 32
N_IMAGES = 31
CLASS_NAMES = ("A", "B", "C")


@pytest.fixture
def dataset() -> Dataset:
    """31 gray noise images of 32 px whose brightness tells their class, one patient an image."""
    generator = np.random.default_rng(3)
    labels = generator.permutation(np.arange(N_IMAGES) % len(CLASS_NAMES))
    noise = generator.integers(0, 120, (N_IMAGES, SIZE, SIZE))
    pixels = (noise + 60 * labels[:, None, None]).astype(np.uint8)
    records = tuple(
        ImageRecord(f"acc{i:03d}/image.dcm", "0" * 64, f"acc{i:03d}", f"patient{i}", int(label), None, None)
        for i, label in enumerate(labels)
    )
    return Dataset(pixels, records, CLASS_NAMES, (), "hash of the small data set")


@pytest.fixture
def split() -> Split:
    """21 training and 10 validation images: five batches of four, the last of them with one image more."""
    return Split(fold=0, train=np.arange(21), validation=np.arange(21, N_IMAGES))


@pytest.fixture
def config() -> Callable[..., TrainConfig]:
    """A function that returns the configuration of a tiny network, with the fields that it is given."""

    def make(**fields: object) -> TrainConfig:
        tiny = {"arch": "test_efficientnet", "weights": "none", "img_size": SIZE, "batch_size": 4, "epochs": 3}
        rates = {"lr": 3e-3, "backbone_lr": 1e-3, "dropout": 0.1, "drop_path": 0.1, "train_augment": True}
        return TrainConfig.model_validate({**tiny, **rates, **fields})

    return make


@pytest.fixture
def resolution() -> Resolution:
    """What decides the bits in these tests: the processor, one thread."""
    return Resolution(
        device_kind="cpu", threads=1, precision="float32", micro_batch=16, validation_batch=4, fused=False
    )


@pytest.fixture
def compute(resolution: Resolution) -> Compute:
    """Where and how steps are computed in these tests."""
    loading = Loading(streamed=False, num_workers=0, prefetch_factor=None, persistent_workers=False)
    return Compute(torch.device("cpu"), resolution, loading)


@pytest.fixture(autouse=True)
def _process_as_before() -> object:
    """Leave the process's threads and determinism as they were."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


@dataclass
class RememberingListener:
    """A listener that keeps what it was told."""

    epochs: list[tuple[int, EpochRecord]] = field(default_factory=list)
    folds: list[FoldResult] = field(default_factory=list)

    def epoch_finished(self, fold: int, record: EpochRecord, *, last: bool) -> None:  # noqa: ARG002 - the records say so
        """Keep the epoch."""
        self.epochs.append((fold, record))

    def fold_resumed(self, fold: int, history: Sequence[EpochRecord], *, last: bool) -> None:
        """Keep nothing: it was finished before."""

    def fold_finished(self, result: FoldResult) -> None:
        """Keep the fold."""
        self.folds.append(result)


@pytest.fixture
def listener() -> RememberingListener:
    """A listener that keeps what it was told."""
    return RememberingListener()


@pytest.fixture
def run_folder(tmp_path: Path) -> HandFolder:
    """An empty folder of a run."""
    return HandFolder(tmp_path)


@dataclass
class StopAfter:
    """A stop signal that is set once it was asked a number of times."""

    asked: int

    def is_set(self) -> bool:
        """Return whether it was asked often enough."""
        self.asked -= 1
        return self.asked < 0


@pytest.fixture
def stop_after() -> type[StopAfter]:
    """The class of a stop signal that is set after so many questions."""
    return StopAfter
