"""How many images go through a network at once: measured on the model and the image size in use, never looked up."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.errors import OutOfMemoryError
from trainer.losses import build_loss
from trainer.model import Network, build_network
from trainer.optim import build_optimizer
from trainer.precision import build_precision

logger = logging.getLogger(__name__)

_USED_SHARE = 0.8
"""Of the free memory: another process may want some, and allocators leave gaps."""
_BEYOND_SAVED = 1.15
"""On the processor, peak memory of a step over what the forward pass keeps for the backward one; measured 0.9 to 1.05."""
_FEWEST = 2
"""Batch norm has no spread over one image."""
_PROBES = (2, 4)
"""Images of the batches that are measured on a GPU."""
_LARGEST_BATCH = {"cpu": 16, "cuda": 64}
"""A larger one gains no speed there."""
_FEWEST_STEPS = 20
"""An epoch of fewer steps learns less than it could; the default batch size is not lowered for it."""

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Footprint:
    """The memory that training takes."""

    fixed_bytes: int
    """Whatever the batch: weights, gradients, the optimiser's moments."""
    image_bytes: int
    """For each image that goes through the network at once."""

    def largest(self, free_bytes: int) -> int:
        """Return how many images fit at once; at least two, since it is the device that has the last word."""
        return max(_FEWEST, int((_USED_SHARE * free_bytes - self.fixed_bytes) / max(1, self.image_bytes)))


def settle_micro_batch(config: TrainConfig, n_classes: int, device: torch.device, precision: Precision) -> int:
    """
    Return how many images of a batch go through the network at once: all, or even parts where they do not fit.

    Raises:
        OutOfMemoryError: not even two images fit.
    """
    fit_at_once = measure(config, n_classes, device, precision).largest(free_bytes(device))
    size = even_parts(config.batch_size, fit_at_once)
    if size < config.batch_size:
        logger.warning(
            "a batch of %d images does not fit: it goes through the network in parts of %d",
            config.batch_size,
            size,
            extra={"action": "micro_batch"},
        )
    return size


def even_parts(batch_size: int, largest: int) -> int:
    """Return the size of the fewest equal parts of a batch of which none is larger than *largest*; at least two."""
    return max(_FEWEST, math.ceil(batch_size / math.ceil(batch_size / largest)))


def choose_batch_size(
    config: TrainConfig, n_train: int, n_classes: int, device: torch.device, precision: Precision
) -> int:
    """
    Return the batch size for a run by hand that asks for none: a power of two that fits into the device's free memory.

    On the processor at most the default of 16, on a GPU up to 64 where an epoch of *n_train* images keeps twenty steps.

    Raises:
        OutOfMemoryError: not even two images fit.
    """
    footprint, free = measure(config, n_classes, device, precision), free_bytes(device)
    chosen = fitting_power(footprint.largest(free), n_train, device.type)
    logger.info(
        "batch size %d: %.0f MB an image and %.0f MB fixed, of %.0f MB free on %s",
        chosen,
        *(size / 2**20 for size in (footprint.image_bytes, footprint.fixed_bytes, free)),
        device,
        extra={"action": "batch_size"},
    )
    return chosen


def fitting_power(largest: int, n_train: int, device_type: str) -> int:
    """Return the largest power of two up to *largest* and to what `choose_batch_size` allows."""
    default = _LARGEST_BATCH["cpu"]
    allowed = min(_LARGEST_BATCH[device_type], max(default, n_train // _FEWEST_STEPS))
    return int(2 ** math.floor(math.log2(min(largest, allowed))))


def free_bytes(device: torch.device) -> int:
    """Return the memory that this process can still get on *device*."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(int(psutil.virtual_memory().available), _container_bytes())


def _container_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return what is left of the memory limit of the container that we are in; more than any machine has if there is none."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = (cgroup / "memory.current").read_text()
    except OSError:
        return 2**63
    return 2**63 if limit == "max" else max(0, int(limit) - int(used))


def measure(config: TrainConfig, n_classes: int, device: torch.device, precision: Precision) -> Footprint:
    """
    Return what training *config* takes on *device*, by training a copy of its network on a few blank images.

    Measured once per process for what it depends on.

    Raises:
        OutOfMemoryError: not even two images fit.
    """
    decides = {"arch", "img_size", "freeze", "optimizer"}
    canonical = TrainConfig.model_validate({**config.model_dump(include=decides), "weights": "none"})
    return _measure(canonical, n_classes, device, precision)


@lru_cache(maxsize=64)
def _measure(config: TrainConfig, n_classes: int, device: torch.device, precision: Precision) -> Footprint:
    network = build_network(config, n_classes, seed=0).to(device).train()
    if device.type != "cuda":
        return _measure_saved(network, config, precision)
    try:
        peaks = [_peak(network, config, n_images, device, precision) for n_images in _PROBES]
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(".")[0]
    else:
        image_bytes = (peaks[1] - peaks[0]) // (_PROBES[1] - _PROBES[0])
        return Footprint(max(0, peaks[0] - _PROBES[0] * image_bytes), image_bytes)
    finally:
        del network
        torch.cuda.empty_cache()
    raise OutOfMemoryError(f"{reason} (arch {config.arch}, img_size {config.img_size}, {_PROBES[1]} images)")


def _measure_saved(network: Network, config: TrainConfig, precision: Precision) -> Footprint:
    """Return the footprint by what a forward pass keeps for the backward one: the processor's allocator reports no peak."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    step = build_precision(precision, torch.device("cpu"), 0)
    with torch.autograd.graph.saved_tensors_hooks(remember, _unchanged), step.autocast():
        output = network(_blank(_FEWEST, config.img_size, torch.device("cpu")))  # alive: what is kept must stay apart
    del output
    input_bytes = 3 * config.img_size**2 * 4  # a network with a frozen backbone keeps less than it sees
    image_bytes = max(input_bytes, int(_BEYOND_SAVED * sum(kept.values()) / _FEWEST))
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return Footprint(fixed_bytes=4 * 3 * trained, image_bytes=image_bytes)  # gradient and two moments, float32


def _peak(network: Network, config: TrainConfig, n_images: int, device: torch.device, precision: Precision) -> int:
    """Return the most bytes that one step on *n_images* images had allocated beyond what was allocated before."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _step(network, config, n_images, device, precision)
    return int(torch.cuda.max_memory_allocated(device) - before)


def _step(network: Network, config: TrainConfig, n_images: int, device: torch.device, precision: Precision) -> None:
    """Train *network* one step on blank images."""
    loss: nn.Module = build_loss(config, _n_outputs(network), None).to(device)
    step = build_precision(precision, device, config.grad_clip)
    optimizer = build_optimizer(config, network, fused=precision == "float16")
    labels = torch.zeros(n_images, dtype=torch.int64, device=device)
    with step.autocast():
        logits = network(_blank(n_images, config.img_size, device))
    step.backward(loss(logits.float(), labels) / n_images)
    step.update(optimizer)
    optimizer.zero_grad(set_to_none=True)


def _n_outputs(network: Network) -> int:
    """Return the number of classes of *network*."""
    return int(network.head_parameters()[-1].shape[0])


def _blank(n_images: int, side: int, device: torch.device) -> Tensor:
    """Return (B, 1, side, side) uint8 images of middle gray."""
    return torch.full((n_images, 1, side, side), 127, dtype=torch.uint8, device=device)


_unchanged: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731 - what autograd calls to unpack
