"""Orders and batches follow from the seed alone, and lose no image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.batches import batch_bounds, epoch_order, images_on
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
