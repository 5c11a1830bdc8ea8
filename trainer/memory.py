"""How many images go through a network at once: measured on the model and the image size in use, never looked up."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from trainer import heap
from trainer.config import TrainConfig
from trainer.errors import OutOfMemoryError
from trainer.losses import build_loss
from trainer.model import Network, build_network
from trainer.optim import build_optimizer
from trainer.precision import build_precision
from trainer.records import Dtype

logger = logging.getLogger(__name__)

_USED_SHARE = 0.8
"""Of the free memory: another process may want some, and allocators leave gaps; see `heap`, a fifth more on the processor."""
_BEYOND_SAVED = 1.15
"""Peak memory of a step over what the forward pass keeps for the backward one; measured on the processor: 0.9 to 1.05."""
_FEWEST = 2
"""Batch norm has no spread over one image."""
_LARGEST_BATCH = {"cpu": 16, "cuda": 64}
"""A larger one gains no speed there."""
_FEWEST_STEPS = 20
"""An epoch of fewer steps learns less than it could; the default batch size is not lowered for it."""


@dataclass(frozen=True)
class Footprint:
    """The memory that training takes."""

    fixed_bytes: int
    """Whatever the batch: weights, gradients, the optimiser's moments; on a GPU also what kernels need to work in."""
    image_bytes: int
    """For each image that goes through the network at once."""

    def largest(self, free_bytes: int) -> int:
        """Return how many images fit at once; at least two, since it is the device that has the last word."""
        return max(_FEWEST, int((_USED_SHARE * free_bytes - self.fixed_bytes) / max(1, self.image_bytes)))


def settle_micro_batch(config: TrainConfig, n_classes: int, device: torch.device, precision: Dtype, free: int) -> int:
    """
    Return how many images of a batch go through the network at once: all, or even parts where they do not fit.

    *free* are the bytes of *device* that training may have.

    Raises:
        OutOfMemoryError: not even two images fit.
    """
    fit_at_once = measure(config, n_classes, device, precision).largest(free)
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
    """
    Return the size of the fewest even parts of a batch of at most *largest* images; at least two.

    A last part of one image joins its neighbour, which then holds one more.
    """
    return max(_FEWEST, math.ceil(batch_size / math.ceil(batch_size / largest)))


def choose_batch_size(
    config: TrainConfig, n_train: int, n_classes: int, device: torch.device, precision: Dtype, free: int
) -> int:
    """
    Return the batch size for a run by hand that asks for none: a power of two that fits into the *free* bytes of *device*.

    On the processor at most the default of 16, on a GPU up to 64 where an epoch of *n_train* images keeps twenty steps.

    Raises:
        OutOfMemoryError: not even two images fit.
    """
    footprint = measure(config, n_classes, device, precision)
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
    heap.give_back()
    return min(int(psutil.virtual_memory().available), _container_bytes())


def _container_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """
    Return what is left of the memory limit of the container that we are in; more than any machine has if there is none.

    Read from cgroup v2 alone. Pages of files that nobody has used lately count as free, as the kernel takes them back first.
    """
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return 2**63
    return 2**63 if limit == "max" else max(0, int(limit) - used + int(statistics["inactive_file"]))


def measure(config: TrainConfig, n_classes: int, device: torch.device, precision: Dtype) -> Footprint:
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
def _measure(config: TrainConfig, n_classes: int, device: torch.device, precision: Dtype) -> Footprint:
    try:
        return _measure_on(config, n_classes, device, precision)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(".")[0]
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    raise OutOfMemoryError(f"{reason} (arch {config.arch}, img_size {config.img_size}, {_FEWEST} images)")


def _measure_on(config: TrainConfig, n_classes: int, device: torch.device, precision: Dtype) -> Footprint:
    """Return the footprint. The processor's allocator reports no peak: there the fixed part is counted."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    network = build_network(config, n_classes, seed=0).to(device).train()
    probe = Probe(network, config, precision, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        probe.step(_FEWEST)
        fixed_bytes = int(torch.cuda.max_memory_allocated(device)) - before
    else:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
        # Weight, gradient and two moments, float32.
        fixed_bytes = 4 * sum(4 * size if is_trained else size for size, is_trained in sizes)
    input_bytes = 3 * config.img_size**2 * 4  # a network with a frozen backbone keeps less than it sees
    return Footprint(fixed_bytes, max(input_bytes, int(_BEYOND_SAVED * probe.kept_per_image())))


@dataclass(frozen=True)
class Probe:
    """A network that takes a few steps, for what they leave behind in memory."""

    network: Network
    config: TrainConfig
    precision: Dtype
    device: torch.device

    def step(self, n_images: int) -> None:
        """Train one step on blank images."""
        n_classes = int(self.network.head_parameters()[-1].shape[0])
        loss: nn.Module = build_loss(self.config, n_classes, None).to(self.device)
        precision = build_precision(self.precision, self.device, self.config.grad_clip)
        optimizer = build_optimizer(self.config, self.network, fused=self.precision == "float16")
        labels = torch.zeros(n_images, dtype=torch.int64, device=self.device)
        logits = self._forward(n_images)
        precision.backward(loss(logits.float(), labels) / n_images)
        precision.update(optimizer)
        optimizer.zero_grad(set_to_none=True)

    def kept_per_image(self) -> float:
        """
        Return the bytes that a forward pass keeps for the backward one, for each image more.

        The difference of two passes: what is kept once, such as weights in a smaller type, is no image's.
        """
        fewer = self._kept(_FEWEST)
        try:
            more = self._kept(2 * _FEWEST)
        except torch.OutOfMemoryError:  # then two fit and four do not
            return fewer / _FEWEST
        return (more - fewer) / _FEWEST

    def _kept(self, n_images: int) -> int:
        """Return the bytes that a forward pass over *n_images* images keeps, beside the parameters."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self.network.parameters()}
        kept: dict[int, int] = {}

        def remember(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, _unchanged):
            output = self._forward(n_images)  # alive: what is kept must stay apart
        del output
        return sum(kept.values())

    def _forward(self, n_images: int) -> Tensor:
        """Return (B, C) logits of blank images: uint8, of middle gray."""
        side = self.config.img_size
        images = torch.full((n_images, 1, side, side), 127, dtype=torch.uint8, device=self.device)
        with build_precision(self.precision, self.device, 0).autocast():
            return self.network(images)  # type: ignore[no-any-return]


_unchanged: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731 - what autograd calls to unpack
