"""Orders and batches follow from the seed alone, and lose no image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.batches import batch_bounds, epoch_order, images_on
from trainer.config import PreprocessingConfig
from trainer.data.on_demand import OnDemand
from trainer.data.records import Dataset


@pytest.mark.parametrize(
    ("n_images", "batch_size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (5, 4, [5]), (3, 4, [3]), (1, 4, [1]), (4, 2, [2, 2])],
)
def test_a_last_batch_of_one_joins_its_neighbour(n_images: int, batch_size: int, sizes: list[int]) -> None:
    """No image is lost, and no batch holds a single one if there is another."""
    bounds = batch_bounds(n_images, batch_size)
    assert [end - begin for begin, end in bounds] == sizes
    assert bounds[0][0] == 0
    assert bounds[-1][1] == n_images


def test_an_epoch_is_a_permutation_of_the_training_images() -> None:
    """Every image once, in an order that the seed decides and nothing drawn before."""
    train, labels = np.array([2, 5, 7, 9, 11]), np.zeros(12, dtype=np.int64)
    first = epoch_order(train, labels, "none", 1)
    np.random.default_rng(5).random(100)
    assert sorted(first) == sorted(train)
    assert np.array_equal(first, epoch_order(train, labels, "none", 1))
    assert any(not np.array_equal(first, epoch_order(train, labels, "none", seed)) for seed in range(2, 6))


def test_weighted_sampling_draws_every_class_equally_often() -> None:
    """20 to 1 becomes even, from training images alone, as many as there are."""
    labels = np.array([0] * 2000 + [1] * 100 + [2] * 50)
    train = np.arange(2100)  # none of class 2
    order = epoch_order(train, labels, "weighted", 7)
    assert len(order) == len(train)
    assert set(order) <= set(train)
    assert np.bincount(labels[order]) / len(order) == pytest.approx([0.5, 0.5], abs=0.05)


def test_a_batch_is_cut_from_the_shared_array(dataset: Dataset) -> None:
    """On the processor nothing is copied before the batch, and the batch has the images that were asked for."""
    images = images_on(dataset, torch.device("cpu"))
    assert images.pixels.data_ptr() == dataset.images.ctypes.data
    batch = images.batch(torch.tensor([4, 0]))
    assert batch.images.shape == (2, 1, 32, 32)
    assert np.array_equal(batch.images[:, 0].numpy(), dataset.images[[4, 0]])
    assert batch.labels.tolist() == dataset.labels[[4, 0]].tolist()


def test_images_on_demand_lie_on_no_device(dataset: Dataset) -> None:
    """Who wants them at hand is told that they are to be streamed."""
    unkept = OnDemand(
        Path("/nowhere"), tuple(record.path for record in dataset.records), PreprocessingConfig(img_size=32)
    )
    with pytest.raises(TypeError, match="stream them"):
        images_on(replace(dataset, images=unkept), torch.device("cpu"))


def test_features_come_with_their_images(dataset: Dataset) -> None:
    """A batch has the vectors of the images that were asked for."""
    vectors = np.random.default_rng(0).random((31, 5), dtype=np.float32)
    source = images_on(replace(dataset, features=vectors), torch.device("cpu"))
    order = np.array([30, 2, 2, 7, 5])
    found = list(source.batches(order, [(0, 2), (2, 5)]))
    assert [batch.features.numpy().tolist() for batch in found] == [
        vectors[[30, 2]].tolist(),
        vectors[[2, 7, 5]].tolist(),
    ]
    assert [batch.labels.tolist() for batch in found] == [
        dataset.labels[[30, 2]].tolist(),
        dataset.labels[[2, 7, 5]].tolist(),
    ]
