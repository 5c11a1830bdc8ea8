"""Random changes of a training batch, on its device: one flip or one batched resampling, and light, with parameters per image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import AugmentationConfig

_WHITE = 255.0
_DRAWS = 7  # an image: flip, angle, shift across, shift down, scale, brightness, contrast


@dataclass(frozen=True)
class Changes:
    """What happens to each image of a batch; every tensor is (B,)."""

    flipped: Tensor
    """Whether it is mirrored left to right."""
    angles: Tensor
    """Rotation, in radians."""
    shifts: tuple[Tensor, Tensor]
    """To the right and down, as a share of the side."""
    scales: Tensor
    """Size, 1 for none."""
    brightness: Tensor
    """Factor of all pixels."""
    contrast: Tensor
    """Factor of the distance from the image's mean."""


def augment(images: Tensor, config: AugmentationConfig, seed: int) -> Tensor:
    """
    Return *images* (B, 1, H, W) changed as *config* says: uint8 where nothing but flips was done, else float32, 0 to 255.

    What happens to an image depends on *seed* and its place in the batch alone, not on what was drawn before, and a
    transform draws the same whether the others are on or off.
    """
    if not config.train_augment:
        return images
    resamples = config.augment_rotation > 0 or config.augment_shift > 0 or config.augment_scale > 0
    relights = config.augment_brightness > 0 or config.augment_contrast > 0
    changes = draw(images.shape[0], config, seed, images.device)
    if resamples:
        images = _resample(images, affine_matrices(changes))
    elif config.augment_flip > 0:
        images = torch.where(changes.flipped[:, None, None, None], images.flip(-1), images)
    return relight(images, changes) if relights else images


def draw(n_images: int, config: AugmentationConfig, seed: int, device: torch.device) -> Changes:
    """Return the changes of *n_images* images, drawn on *device* from *seed*."""
    generator = torch.Generator(device).manual_seed(seed)
    uniform = torch.rand(n_images, _DRAWS, generator=generator, device=device)
    flip = uniform[:, 0]
    angle, across, down, scale, brightness, contrast = (2 * uniform[:, 1:] - 1).unbind(dim=1)  # -1 to 1
    return Changes(
        flipped=flip < config.augment_flip,
        angles=angle * math.radians(config.augment_rotation),
        shifts=(across * config.augment_shift, down * config.augment_shift),
        scales=1 + scale * config.augment_scale,
        brightness=1 + brightness * config.augment_brightness,
        contrast=1 + contrast * config.augment_contrast,
    )


def affine_matrices(changes: Changes) -> Tensor:
    """
    Return (B, 2, 3) float32 matrices that mirror, rotate, scale and shift images as *changes* say.

    They map places in the result to places in the image, both from -1 to 1 (torch's affine_grid): the inverse of what is
    done to the image.
    """
    mirror = torch.where(changes.flipped, -1.0, 1.0)
    cos, sin = torch.cos(changes.angles) / changes.scales, torch.sin(changes.angles) / changes.scales
    right, down = (2 * shift for shift in changes.shifts)  # the side is 2 long
    rows = torch.stack(
        (
            mirror * cos, -mirror * sin, -mirror * (cos * right - sin * down),
            sin, cos, -(sin * right + cos * down),
        ),
        dim=1,
    )  # fmt: skip
    return rows.view(-1, 2, 3)


def _resample(images: Tensor, matrices: Tensor) -> Tensor:
    """Return *images* (B, 1, H, W) resampled bilinearly as (B, 1, H, W) float32; outside an image it is black."""
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def relight(images: Tensor, changes: Changes) -> Tensor:
    """
    Return *images* (B, 1, H, W) with other brightness, then other contrast, as float32, kept within 0 to 255.

    Source: torchvision.transforms.v2.functional.adjust_brightness and adjust_contrast.
    """
    bright = (images.float() * changes.brightness[:, None, None, None]).clamp_(0, _WHITE)
    mean = bright.mean(dim=(1, 2, 3), keepdim=True)
    return bright.lerp_(mean, 1 - changes.contrast[:, None, None, None]).clamp_(0, _WHITE)
