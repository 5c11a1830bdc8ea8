"""Augmentation follows from its seed, does what its fields say, and costs nothing when off."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from trainer.augment import Changes, affine_matrices, augment, draw, relight
from trainer.config import AugmentationConfig

CPU = torch.device("cpu")
NOTHING = {
    "augment_flip": 0.0, "augment_rotation": 0.0, "augment_shift": 0.0, "augment_scale": 0.0,
    "augment_brightness": 0.0, "augment_contrast": 0.0,
}  # fmt: skip


def only(**fields: float) -> AugmentationConfig:
    """Return augmentation by these fields alone."""
    return AugmentationConfig.model_validate({"train_augment": True, **NOTHING, **fields})


def unchanged(n_images: int = 1) -> Changes:
    """Return changes that change nothing."""
    return draw(n_images, only(), 0, CPU)


def noise(*shape: int) -> torch.Tensor:
    """Return uint8 noise."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def disc() -> torch.Tensor:
    """Return (6, 1, 33, 33) uint8 with a bright square off the centre."""
    images = torch.zeros(6, 1, 33, 33, dtype=torch.uint8)
    images[:, :, 4:9, 14:19] = 200
    return images


def test_off_returns_the_very_same_tensor() -> None:
    """Nothing is computed."""
    images = disc()
    assert augment(images, AugmentationConfig(train_augment=False), 1) is images
    assert augment(images, only(), 1) is images


def test_the_seed_alone_decides() -> None:
    """The same seed gives the same batch whatever was drawn before, another seed another one."""
    config = AugmentationConfig(train_augment=True)
    first = augment(disc(), config, 5)
    torch.rand(17)
    augment(disc(), config, 6)
    assert torch.equal(first, augment(disc(), config, 5))
    assert not torch.equal(first, augment(disc(), config, 6))


def test_each_transform_draws_the_same_whether_the_others_are_on_or_off() -> None:
    """So that a search over one strength changes nothing else."""
    alone = draw(8, only(augment_rotation=20), 4, CPU)
    together = draw(8, only(augment_rotation=20, augment_flip=0.5, augment_scale=0.3, augment_contrast=1), 4, CPU)
    assert torch.equal(alone.angles, together.angles)


def test_a_sure_flip_is_a_mirror_image_either_way() -> None:
    """By indexing, and by resampling with the same matrix."""
    images = noise(3, 1, 16, 16)
    assert torch.equal(augment(images, only(augment_flip=1), 1), images.flip(-1))
    nearly = only(augment_flip=1, augment_rotation=1e-6)
    assert torch.allclose(augment(images, nearly, 1), images.flip(-1).float(), atol=0.01)


def test_some_images_of_a_batch_are_flipped_and_some_are_not() -> None:
    """Parameters are drawn per image."""
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(64, 1, 1, 1)
    changed = augment(images, only(augment_flip=0.5), 3)
    flipped = (changed == images.flip(-1)).flatten(1).all(dim=1)
    assert 10 < int(flipped.sum()) < 54
    assert torch.equal(changed[~flipped], images[~flipped])


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("degrees", "right", "down", "scale"), [(90, 0, 0, 1), (17, 0, 0, 1), (0, 0.25, -0.125, 1), (-30, 0.1, 0.2, 1.3)]
)
def test_geometry_equals_torchvisions(
    *, flipped: bool, degrees: float, right: float, down: float, scale: float
) -> None:
    """Mirrored first, then turned and scaled about the centre, then shifted; outside stays black."""
    images = disc()[:1].float()
    changes = replace(
        unchanged(),
        flipped=torch.tensor([flipped]),
        angles=torch.tensor([math.radians(degrees)]),
        shifts=(torch.tensor([right]), torch.tensor([down])),
        scales=torch.tensor([scale]),
    )
    grid = torch.nn.functional.affine_grid(affine_matrices(changes), [1, 1, 33, 33], align_corners=False)
    found = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    expected = reference.affine(
        images.flip(-1) if flipped else images,
        angle=-degrees,  # torchvision turns clockwise
        translate=[right * 33, down * 33],
        scale=scale,
        shear=[0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    assert torch.allclose(found, expected, atol=0.05)
    assert expected.max() > 100


@pytest.mark.parametrize(("brightness", "contrast"), [(1.3, 1.0), (0.6, 1.0), (1.0, 1.4), (1.0, 0.5), (1.2, 0.7)])
def test_light_equals_torchvisions(brightness: float, contrast: float) -> None:
    """Brightness, then contrast about the image's own mean, kept within the range."""
    images = noise(2, 1, 16, 16)
    changes = replace(unchanged(2), brightness=torch.full((2,), brightness), contrast=torch.full((2,), contrast))
    expected = reference.adjust_contrast(reference.adjust_brightness(images / 255, brightness), contrast)
    assert torch.allclose(relight(images, changes) / 255, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "attribute", "bounds"),
    [
        ("augment_rotation", "angles", (-math.radians(0.4), math.radians(0.4))),
        ("augment_scale", "scales", (0.6, 1.4)),
        ("augment_brightness", "brightness", (0.6, 1.4)),
        ("augment_contrast", "contrast", (0.6, 1.4)),
    ],
)
def test_strengths_are_bounds_that_are_reached_evenly(field: str, attribute: str, bounds: tuple[float, float]) -> None:
    """A strength of 0.4: uniform within it, for one transform as for the others."""
    drawn = getattr(draw(4000, only(**{field: 0.4}), 1, CPU), attribute)
    low, high = bounds
    assert low <= float(drawn.min()) < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < float(drawn.max()) <= high
    assert float(drawn.mean()) == pytest.approx((low + high) / 2, abs=0.03 * (high - low))


def test_shifts_go_in_both_directions() -> None:
    """A strength of 0.25 moves at most a quarter of the side, across and down independently."""
    right, down = draw(4000, only(augment_shift=0.25), 1, CPU).shifts
    assert float(right.abs().max()) <= 0.25
    assert float(right.min()) < -0.24 < 0.24 < float(down.max())
    assert abs(float(torch.corrcoef(torch.stack((right, down)))[0, 1])) < 0.05


def test_everything_at_once_keeps_the_range() -> None:
    """Values stay between 0 and 255."""
    changed = augment(noise(16, 1, 33, 33), AugmentationConfig(train_augment=True, augment_brightness=1), 2)
    assert changed.dtype == torch.float32
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 255
