"""What is head, what is backbone, what is frozen, and what the network sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trainer.config import TrainConfig
from trainer.errors import InputError
from trainer.model import build_network
from trainer.weights import load_weights

Make = Callable[..., TrainConfig]


def pixels(n: int) -> torch.Tensor:
    """Return (n, 1, 32, 32) uint8 noise."""
    return torch.randint(0, 256, (n, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", ["test_efficientnet", "test_resnet", "test_byobnet"])
@pytest.mark.parametrize("freeze", ["backbone", "all-but-last-block"])
def test_frozen_batch_norm_does_not_move(config: Make, arch: str, freeze: str) -> None:
    """In train(), the statistics of frozen batch norms stay, and frozen stochastic depth is off; the others move."""
    network = build_network(config(arch=arch, freeze=freeze, drop_path=0.5 if "resnet" not in arch else 0.0), 3, 0)
    frozen = {name for name, own in network.model.named_parameters() if not own.requires_grad}
    before = {name: buffer.clone() for name, buffer in network.model.named_buffers() if "running" in name}
    network.train()
    network(pixels(8))
    for name, buffer in network.model.named_buffers():
        if name in before:
            still = f"{name.rpartition('.')[0]}.weight" in frozen
            assert torch.equal(buffer, before[name]) is still, name


def test_a_frozen_backbone_repeats_itself_in_training(config: Make) -> None:
    """With stochastic depth asked for and no dropout, two forward passes through a frozen backbone are equal."""
    network = build_network(config(arch="test_byobnet", freeze="backbone", dropout=0.0, drop_path=0.5), 3, 0).train()
    assert torch.equal(network(pixels(4)), network(pixels(4)))


def test_dropout_before_the_head_works_with_a_frozen_backbone(config: Make) -> None:
    """The head's dropout belongs to the head."""
    network = build_network(config(freeze="backbone", dropout=0.5, drop_path=0.0), 3, 0).train()
    assert not torch.equal(network(pixels(4)), network(pixels(4)))


def test_the_last_block_and_what_follows_are_trained(config: Make) -> None:
    """With all-but-last-block, exactly the last stage, what comes after it, and the head."""
    network = build_network(config(freeze="all-but-last-block"), 3, 0)
    trained = {name.split(".")[0] for name, own in network.model.named_parameters() if own.requires_grad}
    stages = {
        name.split(".")[1] for name, own in network.model.named_parameters() if own.requires_grad and "blocks" in name
    }
    assert trained == {"blocks", "conv_head", "bn2", "classifier"}
    assert stages == {"4"}


@pytest.mark.parametrize("arch", ["test_efficientnet", "tf_efficientnet_lite0"])
def test_gray_is_normalised_as_the_weights_expect(config: Make, arch: str) -> None:
    """The logits are the bare timm model's on three equal channels, minus mean, by standard deviation."""
    network = build_network(config(arch=arch), 3, 0).eval()
    model = network.model
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    expected = model((pixels(3).repeat(1, 3, 1, 1) / 255 - mean) / std)
    assert torch.allclose(network(pixels(3)), expected, atol=1e-5)


def test_the_head_is_drawn_from_the_seed(config: Make) -> None:
    """The same seed gives the same network, another one another head."""
    first, again, other = (build_network(config(), 3, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.classifier.weight"], other["model.classifier.weight"])


def test_bundled_weights_fill_the_whole_backbone_and_leave_the_head(config: Make) -> None:
    """All tensors but the classifier's are the file's."""
    weights = load_weights("bundled", "tf_efficientnet_lite0")
    assert weights is not None
    state = build_network(config(arch="tf_efficientnet_lite0", weights="bundled"), 3, 0).model.state_dict()
    for name, tensor in weights.items():
        if "classifier" not in name:
            assert torch.equal(state[name], tensor), name
    assert state["classifier.weight"].shape == (3, 1280)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "efficentnet_b0"}, "did you mean 'efficientnet_b0'"),
        ({"arch": "resnet50.nonsense"}, "resnet50"),
        ({"arch": "vgg11", "drop_path": 0.1}, "drop_path"),
        ({"arch": "test_efficientnet", "weights": "somewhere.bin"}, "somewhere.bin"),
    ],
)
def test_wrong_names_are_refused_in_one_line(config: Make, fields: dict[str, object], message: str) -> None:
    """An unknown architecture, an option that it does not have, weights that are nothing."""
    with pytest.raises(InputError) as caught:
        build_network(config(**fields), 3, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
