"""What decides the bits beside the configuration: settled once per trial, recorded, enforced before the first step."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from trainer import heap
from trainer.config import PrecisionConfig, TrainConfig
from trainer.data.records import Dataset
from trainer.errors import InputError
from trainer.loading import Loading, free_for_training
from trainer.memory import settle_micro_batch
from trainer.records import Dtype, Resolution

_NATIVE_BFLOAT16 = (8, 0)  # compute capability
_VALIDATION_BATCH = 32
_VALIDATED_PER_TRAINED = 4
"""Images of a validation batch for one that is trained on at once: it keeps nothing for gradients, and takes about a fifth."""
_ALL_THREADS = torch.get_num_threads()
"""Before any run has set it."""


def resolve_device(name: str) -> torch.device:
    """
    Return the device called *name*, ready for deterministic work: auto (the first GPU, else the processor), cpu, cuda or cuda:N.

    Raises:
        InputError: a GPU is asked for and is not there.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(f"device: {name} was asked for, but torch sees no GPU here; use auto or cpu")
    device = torch.device("cuda", 0) if name in {"auto", "cuda"} else torch.device(name)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise InputError(f"device: {name} was asked for, but there are only {torch.cuda.device_count()} GPUs here")
    # Read once, when cuBLAS makes its first handle: set whether this run asks for it or not, since a later one may.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device


def device_kind(device: torch.device) -> str:
    """Return ``cpu``, or the name of the GPU."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


@dataclass(frozen=True)
class Compute:
    """Where and how the steps of a run are computed."""

    device: torch.device
    resolution: Resolution
    loading: Loading


def resolve(
    config: TrainConfig, dataset: Dataset, device: torch.device, *, threads: int | None, micro_batch: int | None = None
) -> Resolution:
    """
    Return what decides the bits of *config* on *device*.

    Args:
        config: What is trained.
        dataset: On what.
        device: Where.
        threads: Processor threads; None is all that torch would use by itself.
        micro_batch: Images that go through the network at once; None is the batch, or what fits of it.

    Raises:
        OutOfMemoryError: Not even two images fit.
    """
    precision = resolve_precision(config, device)
    n_classes = len(dataset.class_names)
    if micro_batch is None and config.loader_heuristics:
        micro_batch = settle_micro_batch(config, n_classes, device, precision, free_for_training(dataset, device))
    micro_batch = min(config.batch_size, micro_batch or config.batch_size)
    return Resolution(
        device_kind=device_kind(device),
        threads=_ALL_THREADS if threads is None else threads,
        precision=precision,
        micro_batch=micro_batch,
        validation_batch=min(max(config.batch_size, _VALIDATION_BATCH), _VALIDATED_PER_TRAINED * micro_batch),
        # A scaler must read back whether a gradient overflowed, unless the optimiser takes that answer on the device.
        fused=config.fused_optim or precision == "float16",
    )


def resolve_precision(config: PrecisionConfig, device: torch.device) -> Dtype:
    """Return the type of the forward pass."""
    if config.amp == "off" or (config.amp == "auto" and device.type != "cuda"):
        return "float32"
    if config.amp_dtype != "auto":
        return config.amp_dtype
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _NATIVE_BFLOAT16:
        return "float16"
    return "bfloat16"


def enforce(resolution: Resolution, *, deterministic: bool = True) -> None:
    """Set this process to *resolution*: processor threads and their heap and, if asked, deterministic algorithms only."""
    torch.set_num_threads(resolution.threads)
    if resolution.device_kind == "cpu":
        heap.keep_freed()
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
