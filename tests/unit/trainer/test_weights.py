"""Weights come whole, or with an error that says how to get them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from trainer import weights as module
from trainer.config import TrainConfig
from trainer.errors import InputError, WeightsUnavailableError
from trainer.model import build_network
from trainer.weights import bundled_weights, file_weights, load_weights

Make = Callable[..., TrainConfig]


def test_bundled_weights_fit_timms_network_strictly() -> None:
    """No name is missing, none is left over, head included."""
    model = timm.create_model("tf_efficientnet_lite0")
    weights = bundled_weights("tf_efficientnet_lite0")
    assert weights.keys() == model.state_dict().keys()
    model.load_state_dict(dict(weights), strict=True)


def test_weights_are_read_once() -> None:
    """The second fold gets the tensors that the first one got."""
    assert load_weights("bundled", "tf_efficientnet_lite0") is load_weights("bundled", "tf_efficientnet_lite0")


def test_bundled_weights_of_another_network_are_refused() -> None:
    """The message names the network that they are for."""
    with pytest.raises(WeightsUnavailableError, match="tf_efficientnet_lite0"):
        load_weights("bundled", "resnet50")


def test_an_unreachable_hub_is_one_line_and_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nobody answers, the error says how to get the weights; never a random start."""
    nobody = "http://127.0.0.1:9/model.safetensors"
    monkeypatch.setattr(module.huggingface_hub, "hf_hub_url", lambda *_: nobody)
    monkeypatch.setattr(module.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(WeightsUnavailableError) as caught:
        load_weights("imagenet", "test_efficientnet")
    assert "model.safetensors" in str(caught.value)
    assert "bundled" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_imagenet_weights_come_from_the_local_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file in the hub's local cache is used without asking the network."""
    path = tmp_path / "model.safetensors"
    source = timm.create_model("test_efficientnet").state_dict()
    save_file(source, path)
    monkeypatch.setattr(module.huggingface_hub, "try_to_load_from_cache", lambda *_: str(path))
    found = module.imagenet_weights("test_efficientnet")
    assert all(torch.equal(found[name], tensor) for name, tensor in source.items())


def test_a_network_without_pretrained_weights_is_refused() -> None:
    """The message says that there are none."""
    with pytest.raises(WeightsUnavailableError, match="no pretrained weights for efficientnet_b8"):
        load_weights("imagenet", "efficientnet_b8")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_gives_its_backbone(config: Make, tmp_path: Path, suffix: str) -> None:
    """Everything but the head is the file's, whatever number of classes it was trained for."""
    source = timm.create_model("test_efficientnet", num_classes=7).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model_state_dict": source}, path)
    else:
        save_file(source, path)
    state = build_network(config(weights=str(path)), 3, 0).model.state_dict()
    assert all(torch.equal(state[name], source[name]) for name in source if "classifier" not in name)
    assert state["classifier.weight"].shape[0] == 3


def test_a_file_of_another_network_is_refused(config: Make, tmp_path: Path) -> None:
    """A backbone is never filled in part."""
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(InputError, match="do not fit test_efficientnet"):
        build_network(config(weights=str(path)), 3, 0)


class Surprise:
    """An object that only unpickling makes."""


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    """A .pth file that would make objects is refused in one line."""
    path = tmp_path / "weights.pth"
    torch.save({"object": Surprise()}, path)
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        file_weights(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message has the path."""
    with pytest.raises(WeightsUnavailableError, match=r"nowhere\.pth"):
        load_weights(str(tmp_path / "nowhere.pth"), "resnet50")
