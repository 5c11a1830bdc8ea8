"""Random changes of a training batch, on its device: one flip or one batched resampling, with parameters per image."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import AugmentationConfig


def augment(images: Tensor, config: AugmentationConfig, seed: int) -> Tensor:
    """
    Return *images* (B, 1, H, W) changed as *config* says: uint8 where nothing was resampled, else float32, 0 to 255.

    What happens to an image depends on *seed* and its place in the batch alone, not on what was drawn before.
    Not covered: shift, scale, brightness, contrast.
    """
    if not config.train_augment or (config.augment_flip == 0 and config.augment_rotation == 0):
        return images
    generator = torch.Generator(images.device).manual_seed(seed)
    draws = torch.rand(images.shape[0], 2, generator=generator, device=images.device)
    flipped = draws[:, 0] < config.augment_flip  # (B,)
    if config.augment_rotation == 0:
        return torch.where(flipped[:, None, None, None], images.flip(-1), images)
    angles = (2 * draws[:, 1] - 1) * math.radians(config.augment_rotation)
    return _resample(images, affine_matrices(flipped, angles))


def affine_matrices(flipped: Tensor, angles: Tensor) -> Tensor:
    """
    Return (B, 2, 3) float32 matrices that rotate by *angles* (B,) in radians and mirror where *flipped* (B,) is true.

    They map places in the result to places in the image, both from -1 to 1 (torch's affine_grid).
    """
    mirror = torch.where(flipped, -1.0, 1.0)
    cos, sin, zero = torch.cos(angles), torch.sin(angles), torch.zeros_like(angles)
    rows = torch.stack((mirror * cos, -mirror * sin, zero, sin, cos, zero), dim=1)
    return rows.view(-1, 2, 3)


def _resample(images: Tensor, matrices: Tensor) -> Tensor:
    """Return *images* (B, 1, H, W) resampled bilinearly as (B, 1, H, W) float32; outside an image it is black."""
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
