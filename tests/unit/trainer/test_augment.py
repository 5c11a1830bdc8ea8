"""Augmentation follows from its seed, does what its fields say, and costs nothing when off."""

from __future__ import annotations

import numpy as np
import torch

from trainer.augment import affine_matrices, augment
from trainer.config import AugmentationConfig


def disc() -> torch.Tensor:
    """Return (6, 1, 33, 33) uint8 with a bright square off the centre."""
    images = torch.zeros(6, 1, 33, 33, dtype=torch.uint8)
    images[:, :, 4:9, 14:19] = 200
    return images


def test_off_returns_the_very_same_tensor() -> None:
    """Nothing is computed."""
    images = disc()
    assert augment(images, AugmentationConfig(train_augment=False), 1) is images
    still = AugmentationConfig(train_augment=True, augment_flip=0, augment_rotation=0)
    assert augment(images, still, 1) is images


def test_the_seed_alone_decides() -> None:
    """The same seed gives the same batch whatever was drawn before, another seed another one."""
    config = AugmentationConfig(train_augment=True)
    first = augment(disc(), config, 5)
    torch.rand(17)
    augment(disc(), config, 6)
    assert torch.equal(first, augment(disc(), config, 5))
    assert not torch.equal(first, augment(disc(), config, 6))


def test_a_sure_flip_is_a_mirror_image_either_way() -> None:
    """By indexing, and by resampling with the same matrix."""
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = AugmentationConfig(train_augment=True, augment_flip=1, augment_rotation=0)
    assert torch.equal(augment(images, config, 1), images.flip(-1))
    nearly = AugmentationConfig(train_augment=True, augment_flip=1, augment_rotation=1e-6)
    assert torch.allclose(augment(images, nearly, 1), images.flip(-1).float(), atol=0.01)


def test_some_images_of_a_batch_are_flipped_and_some_are_not() -> None:
    """Parameters are drawn per image."""
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(64, 1, 1, 1)
    config = AugmentationConfig(train_augment=True, augment_flip=0.5, augment_rotation=0)
    changed = augment(images, config, 3)
    flipped = (changed == images.flip(-1)).flatten(1).all(dim=1)
    assert 10 < int(flipped.sum()) < 54
    assert torch.equal(changed[~flipped], images[~flipped])


def test_a_quarter_turn_equals_numpys() -> None:
    """The matrix of 90 degrees turns an image as numpy does, outside stays black."""
    images = disc()[:1]
    matrices = affine_matrices(torch.tensor([False]), torch.tensor([torch.pi / 2]))
    grid = torch.nn.functional.affine_grid(matrices, [1, 1, 33, 33], align_corners=False)
    turned = torch.nn.functional.grid_sample(images.float(), grid, align_corners=False)[0, 0].numpy()
    quarter = [np.rot90(images[0, 0].numpy(), k) for k in (1, 3)]
    assert any(np.allclose(turned, each, atol=0.5) for each in quarter)


def test_rotation_keeps_the_range_and_the_middle() -> None:
    """Values stay between 0 and 255 and the centre stays where it is."""
    images = torch.zeros(8, 1, 33, 33, dtype=torch.uint8)
    images[:, :, 14:19, 14:19] = 255
    changed = augment(images, AugmentationConfig(train_augment=True, augment_rotation=30), 2)
    assert changed.dtype == torch.float32
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 255 + 1e-3  # float32 rounds
    assert torch.allclose(changed[:, 0, 16, 16], torch.tensor(255.0), atol=0.01)
