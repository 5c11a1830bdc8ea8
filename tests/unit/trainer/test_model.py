"""What is head, what is backbone, what is frozen, and what the network sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from trainer.config import TrainConfig
from trainer.errors import InputError
from trainer.model import Network, build_network, heads
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


FUSED = (
    "efficientnet_b0", "resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050",
)  # fmt: skip
"""Heads of several families, all of them one linear layer."""


def experienced(network: Network) -> Network:
    """Return *network* in eval(), its batch norms as if they had seen data: else one that is left out goes unnoticed."""
    generator = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) / 10
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return network.eval()


@pytest.mark.parametrize("arch", FUSED)
def test_what_the_classifier_makes_of_the_features_are_the_logits(config: Make, arch: str) -> None:
    """`embed` is what comes right before the head: the classifier on it gives what `forward` gives."""
    network = experienced(build_network(config(arch=arch, drop_path=0.0), 3, 0))
    (classifier,) = heads(network.model)
    features = network.embed(pixels(2))
    assert features.shape == (2, classifier.in_features)
    assert torch.allclose(classifier(features), network(pixels(2)), atol=1e-5)


@pytest.mark.parametrize("arch", [*FUSED, "resnetv2_50", "deit_tiny_distilled_patch16_224"])
def test_features_are_those_of_timms_headless_network(config: Make, arch: str) -> None:
    """`embed` gives what timm's network without a head does with the same tensors, whatever the head."""
    network = experienced(build_network(config(arch=arch, drop_path=0.0), 3, 0))
    options = {"img_size": 32} if "patch16" in arch else {}
    reference = timm.create_model(arch, num_classes=0, **options).eval()
    state = network.model.state_dict()
    reference.load_state_dict({name: state[name] for name in reference.state_dict()})
    cfg = reference.pretrained_cfg
    mean, std = (torch.tensor(cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    expected = reference((pixels(2).repeat(1, 3, 1, 1) / 255 - mean) / std)
    assert torch.allclose(network.embed(pixels(2)), expected, atol=1e-4)


@pytest.mark.parametrize("arch", [*FUSED, "efficientvit_m0", "shvit_s1"])
def test_a_fused_network_that_ignores_the_features_is_the_plain_one(config: Make, arch: str) -> None:
    """The head sees its own inputs as ever, those that it normalises itself among them, and the features behind them."""
    size = 64 if arch in {"efficientvit_m0", "shvit_s1"} else 32
    made = config(arch=arch, drop_path=0.0, img_size=size)
    plain, fused = (experienced(build_network(made, 3, 0, n_features)) for n_features in (0, 5))
    (narrow,), (wide,) = heads(plain.model), heads(fused.model)
    assert wide.in_features == narrow.in_features + 5
    with torch.no_grad():
        wide.weight.copy_(torch.cat((narrow.weight, torch.zeros(3, 5)), dim=1))
        wide.bias.copy_(narrow.bias)
    images = torch.nn.functional.interpolate(pixels(2).float(), size)
    assert torch.allclose(fused(images, torch.randn(2, 5)), plain(images), atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet18", "tf_efficientnet_lite0"])
def test_the_head_learns_from_both_kinds_of_features(config: Make, arch: str) -> None:
    """Logits depend on each feature, linearly, and the head's parameters are still the classifier's alone."""
    network = build_network(config(arch=arch, drop_path=0.0), 3, 0, 5).eval()
    (classifier,) = heads(network.model)
    first, other = torch.zeros(2, 5), torch.eye(5)[1:3]
    change = network(pixels(2), other) - network(pixels(2), first)
    assert torch.allclose(change, other @ classifier.weight[:, -5:].T, atol=1e-5)
    assert {id(own) for own in network.head_parameters()} == {id(own) for own in classifier.parameters()}
    assert torch.equal(network.embed(pixels(2), other)[:, -5:], other)


def test_features_are_dropped_like_the_networks_own(config: Make) -> None:
    """Dropout before the head takes features of both kinds, and only while training."""
    network = build_network(config(dropout=0.5, drop_path=0.0), 3, 0, 1000)
    ones = torch.ones(2, 1000)
    dropped = network.train().embed(pixels(2), ones)[:, -1000:]
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert 0.4 < (dropped == 0).float().mean() < 0.6
    assert torch.equal(network.eval().embed(pixels(2), ones)[:, -1000:], ones)


@pytest.mark.parametrize("arch", ["deit_tiny_distilled_patch16_224", "levit_128s", "caformer_s18", "resnetv2_50"])
def test_a_head_that_is_not_one_linear_layer_is_refused(config: Make, arch: str) -> None:
    """Two classifiers, one with a norm, one with a hidden layer, a convolution: one line that says what to do."""
    with pytest.raises(InputError, match=r"embeddings_dir: the head of .* use another arch"):
        build_network(config(arch=arch, drop_path=0.0, img_size=224), 3, 0, 5)
