"""A flag is taken as it is given; what no flag says follows from the cores, the data and the device."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import batches
from trainer.batches import images_on
from trainer.config import LoadingConfig, PreprocessingConfig
from trainer.data.on_demand import OnDemand
from trainer.data.records import Dataset
from trainer.loading import Loading, fits, free_for_training, settle_loading

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)  # only its name: nothing here touches one
NOT_STREAMED = Loading(streamed=False, num_workers=0, prefetch_factor=None, persistent_workers=False)


@pytest.fixture
def on_demand(dataset: Dataset) -> Dataset:
    """The small data set, of which nothing is kept."""
    paths = tuple(record.path for record in dataset.records)
    return dataclasses.replace(dataset, images=OnDemand(Path("/nowhere"), paths, PreprocessingConfig(img_size=32)))


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of which this process may use four cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 4, 6})


def settled(dataset: Dataset, n_batches: int = 100, **flags: object) -> Loading:
    """What is settled on the processor."""
    return settle_loading(LoadingConfig.model_validate(flags), dataset, CPU, n_batches)


def test_half_of_the_free_memory() -> None:
    """The array may take half of what is free and not a byte more."""
    assert fits(50, 100)
    assert not fits(51, 100)
    assert not fits(50, 99)


def test_the_processor_streams_only_what_is_not_kept(dataset: Dataset, on_demand: Dataset) -> None:
    """An array in memory or in a file serves the processor as it is."""
    assert settled(dataset) == NOT_STREAMED
    assert settled(on_demand).streamed


def test_a_gpu_streams_what_does_not_fit(dataset: Dataset, on_demand: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the array lies in at most half of the free memory, unless it is there already; what goes for it is free."""
    size = dataset.images.nbytes

    def streamed(data: Dataset, free: int, *uploaded: str) -> bool:
        # Of a GPU that this machine need not have: its free memory, and the hash of the images that lie there.
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10 * size))
        monkeypatch.setattr(batches, "_uploaded", {(name, None, GPU): images_on(dataset, CPU) for name in uploaded})
        return settle_loading(LoadingConfig(), data, GPU, 100).streamed

    assert not streamed(dataset, 2 * size)
    assert streamed(dataset, 2 * size - 1)
    assert streamed(on_demand, 10 * size)
    assert not streamed(dataset, 0, dataset.data_hash)
    assert not streamed(dataset, size, "other images")
    assert streamed(dataset, size - 1, "other images")


def test_training_has_what_the_images_leave(
    dataset: Dataset, on_demand: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the array will take is taken off, and what other data will give up is added; of that the batch is chosen."""
    with_features = dataclasses.replace(
        dataset, features=np.zeros((len(dataset.records), 8), np.float32), features_hash="f"
    )
    size, features = dataset.images.nbytes, 4 * 8 * len(dataset.records)

    def left(data: Dataset, free: int, uploaded: Dataset | None = None) -> int:
        there = (
            {} if uploaded is None else {(uploaded.data_hash, uploaded.features_hash, GPU): images_on(uploaded, CPU)}
        )
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10 * size))
        monkeypatch.setattr(batches, "_uploaded", there)
        return free_for_training(data, GPU)

    assert left(dataset, 3 * size) == 2 * size
    assert left(with_features, 3 * size) == 2 * size - features
    assert left(dataset, 3 * size, dataset) == 3 * size  # it is there already
    assert left(dataset, 3 * size, with_features) == 3 * size + features  # those go, these come
    assert left(dataset, size) == size  # too large: streamed
    assert left(on_demand, size) == size
    assert 0 < free_for_training(dataset, CPU) < 2**60


@pytest.mark.parametrize(
    ("flags", "n_batches", "num_workers", "prefetch_factor"),
    [
        ({}, 100, 4, 4),  # one a core, and no further ahead than four
        ({}, 9, 4, 2),  # each no more than its share of the epoch
        ({}, 5, 4, 1),
        ({}, 3, 3, 1),  # none without a batch to read
        ({}, 1, 1, 1),
        ({"num_workers": 16}, 100, 16, 4),  # a flag wins
        ({"num_workers": 1}, 2, 1, 2),
        ({"num_workers": 0}, 100, 0, None),  # torch refuses a number
        ({"num_workers": 0, "prefetch_factor": 3}, 100, 0, None),
        ({"prefetch_factor": 7}, 3, 3, 7),
        ({"loader_heuristics": False}, 100, 0, None),
        ({"loader_heuristics": False, "num_workers": 2}, 100, 2, None),  # torch's own
        ({"loader_heuristics": False, "num_workers": 2, "prefetch_factor": 5}, 100, 2, 5),
    ],
)
def test_processes_and_how_far_they_read_ahead(
    on_demand: Dataset,
    cores: None,
    flags: dict[str, object],
    n_batches: int,
    num_workers: int,
    prefetch_factor: int | None,
) -> None:
    """Both follow from the flags, else from the cores and the batches of an epoch."""
    found = settled(on_demand, n_batches, **flags)
    assert (found.num_workers, found.prefetch_factor) == (num_workers, prefetch_factor)


def test_at_most_eight_processes(on_demand: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of many cores does not read with all of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert settled(on_demand).num_workers == 8


def test_only_processes_can_be_kept(on_demand: Dataset) -> None:
    """Without processes there is nothing that persists."""
    assert settled(on_demand, num_workers=2, persistent_workers=True).persistent_workers
    assert not settled(on_demand, num_workers=0, persistent_workers=True).persistent_workers
    assert not settled(on_demand, num_workers=2).persistent_workers


def test_flags_without_effect_are_named(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    """Who gives flags for streaming where nothing is streamed is told so in one line; who gives none is told nothing."""
    caplog.set_level(logging.INFO, logger="trainer.loading")
    assert settled(dataset) == NOT_STREAMED
    assert not caplog.records
    assert settled(dataset, num_workers=0, persistent_workers=True) == NOT_STREAMED
    assert [record.getMessage() for record in caplog.records] == [
        "no effect of --num-workers, --persistent-workers: the decoded images are all at hand, and none is read ahead"
    ]
