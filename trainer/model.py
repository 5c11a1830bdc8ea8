"""From a name to a network that says which of its parts is the head and which the backbone, and what of it is frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Self

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import ModelConfig, TrainConfig, nearest
from trainer.errors import InputError
from trainer.seeds import seed_globals
from trainer.weights import load_weights

_CHANNELS = 3
_WHITE = 255.0


class Network(nn.Module):
    """
    A timm model that takes gray images, with head and backbone told apart.

    ``train()`` leaves frozen modules in ``eval()``: else their batch-norm statistics and stochastic depth would move on.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(
        self, model: nn.Module, freeze: Literal["none", "backbone", "all-but-last-block"], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self._dropout = dropout
        normalisation: Any = model.pretrained_cfg
        mean, std = (torch.tensor(normalisation[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        self.register_buffer("_scale", 1 / (_WHITE * std), persistent=False)  # (1, 3, 1, 1)
        self.register_buffer("_shift", -mean / std, persistent=False)
        self._head_names = head_names(model)
        self._frozen_names = _freeze(model, self._head_names, freeze)

    def forward(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """
        Return (B, C) logits of *images*: (B, 1, H, W), 0 to 255, uint8 or float32.

        *features* (B, D) are those of another backbone, for a network that was built to see them beside its own.
        """
        if features is None:
            logits: Tensor = self.model(self._normalised(images))
        else:
            (classifier,) = heads(self.model)
            # At the classifier's own door and not behind embed(): some networks normalise between the two.
            with classifier.register_forward_pre_hook(lambda _, seen: (self._beside(seen[0], features),)):
                logits = self.model(self._normalised(images))
        return logits

    def embed(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Return (B, K) pooled features of *images*, and *features* behind them."""
        model: Any = self.model
        pooled: Tensor = model.forward_head(model.forward_features(self._normalised(images)), pre_logits=True)
        return pooled if features is None else self._beside(pooled, features)

    def _beside(self, own: Tensor, features: Tensor) -> Tensor:
        """Return (B, K) the network's *own* features and *features* behind them, dropped while training as the former are."""
        return torch.cat((own, functional.dropout(features, self._dropout, self.training)), dim=1)

    def _normalised(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) float32 in the range that the backbone was trained on."""
        gray = images.float().expand(-1, _CHANNELS, -1, -1)  # a view: the channels share their memory
        normalised = torch.addcmul(self._shift, gray, self._scale)
        return normalised.contiguous(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Self:
        """Set what is trained to *mode* and leave what is frozen in ``eval()``."""
        super().train(mode)
        for name, module in self.model.named_modules():
            if name in self._frozen_names:
                module.training = False  # not eval(): a frozen container may hold nothing that is not listed itself
        return self

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the classifier."""
        return [parameter for name, parameter in self._trained() if name in self._head_names]

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters of everything before the classifier; none if it is frozen."""
        return [parameter for name, parameter in self._trained() if name not in self._head_names]

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)


def build_network(config: TrainConfig, n_classes: int, seed: int, n_features: int = 0) -> Network:
    """
    Return the network of *config* on the processor: a head drawn from *seed*, the backbone from its weights.

    Args:
        config: What is built.
        n_classes: Outputs.
        seed: Of everything that is drawn.
        n_features: Features of another backbone that the head sees beside its own.

    Raises:
        InputError: an unknown architecture, or weights or settings that do not fit it.
        WeightsUnavailableError: the weights cannot be had here.
    """
    check_arch(config.arch)
    weights = load_weights(config.weights, config.arch)
    seed_globals(seed)  # timm draws from torch's; nothing was drawn from it since
    model = _create(config, n_classes)
    if n_features > 0:
        _widen_head(model, n_features)
    _reset_head(model)
    if weights is not None:
        _load_backbone(model, weights, config)
    network = Network(model, config.freeze, config.dropout)
    move: Callable[..., Network] = network.to  # not every supported torch declares memory_format in its types
    return move(memory_format=torch.channels_last)


def check_arch(arch: str) -> None:
    """
    Accept *arch* if timm knows it.

    Raises:
        InputError: with the nearest name that timm knows.
    """
    known = timm.list_models(pretrained=True) if "." in arch else timm.list_models()
    if arch not in known:
        raise InputError(f"arch: timm knows no model {arch!r}{nearest(arch, known)}")


def _create(config: TrainConfig, n_classes: int) -> nn.Module:
    """Return the timm model, drawn from torch's global generator."""
    options: dict[str, Any] = {}
    if config.dropout > 0:
        options["drop_rate"] = config.dropout
    if config.drop_path > 0:
        options["drop_path_rate"] = config.drop_path
    pretrained = timm.get_pretrained_cfg(config.arch)
    if pretrained is not None and pretrained.fixed_input_size:
        options["img_size"] = config.img_size
    try:
        model: nn.Module = timm.create_model(
            config.arch, pretrained=False, num_classes=n_classes, in_chans=_CHANNELS, **options
        )
    except (TypeError, AssertionError) as error:  # what timm raises for an option that a model does not have
        raise InputError(f"arch: {config.arch} cannot be built with {options}: {error}") from error
    return model


def _widen_head(model: nn.Module, n_features: int) -> None:
    """Make the classifier of *model* see *n_features* more than the network's own. Raises InputError if it cannot."""
    classifiers = heads(model)
    names = [name for name, module in model.named_modules() if module is classifiers[0]]
    narrow = classifiers[0]
    if len(classifiers) > 1 or not names or not isinstance(narrow, nn.Linear):
        raise InputError(
            f"embeddings_dir: the head of {type(model).__name__} is not one linear layer; use another arch"
        )
    parent, _, name = names[0].rpartition(".")
    wide = nn.Linear(narrow.in_features + n_features, narrow.out_features, bias=narrow.bias is not None)
    setattr(model.get_submodule(parent), name, wide)


def _reset_head(model: nn.Module) -> None:
    """
    Draw the classifier of *model* anew, the way torch draws a linear layer.

    timm draws EfficientNet's from a range that follows from the number of classes, +-0.58 for three: over 1280 features the
    loss begins at 5 and not at log(3), and the first epochs go into unlearning that.
    """
    for module in heads(model):
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.reset_parameters()


def heads(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the classifiers of *model*; most have one, distilled transformers two."""
    get_classifier: Callable[[], nn.Module | tuple[nn.Module, ...]] = model.get_classifier  # type: ignore[assignment]
    classifier = get_classifier()
    return classifier if isinstance(classifier, tuple) else (classifier,)


def head_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the classifier's parameters, as timm's own ``get_classifier()`` has it."""
    own = {id(parameter) for head in heads(model) for parameter in head.parameters()}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in own)


def _load_backbone(model: nn.Module, weights: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Copy all of *weights* but the classifier's into *model*; refuse any that are missing, left over or of another shape."""
    head = head_names(model)
    backbone = {name: tensor for name, tensor in weights.items() if name not in head}
    try:
        missing, unexpected = model.load_state_dict(backbone, strict=False)
    except RuntimeError as error:
        raise InputError(f"weights: those of {config.weights} do not fit {config.arch}: other shapes") from error
    if set(missing) != head or unexpected:
        odd = sorted((set(missing) - head) | set(unexpected))
        raise InputError(
            f"weights: those of {config.weights} do not fit {config.arch}: {len(odd)} names, {odd[0]} first"
        )


def _freeze(model: nn.Module, head: frozenset[str], freeze: str) -> frozenset[str]:
    """Mark the frozen parameters of *model*; return the names of the modules that hold nothing else."""
    if freeze == "none":
        return frozenset()
    trained = head if freeze == "backbone" else head | _last_block(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return _frozen_modules(model)


def _last_block(model: nn.Module) -> frozenset[str]:
    """
    Return the names of the parameters of the last block and of everything after it, in the order of timm's modules.

    Raises:
        InputError: the architecture does not say what its last block is.
    """
    features: list[dict[str, str]] = getattr(model, "feature_info", [])
    names = [name for name, _ in model.named_parameters()]
    for feature in reversed(features):  # some end in a layer without parameters
        first = next((i for i, name in enumerate(names) if name.startswith(f"{feature['module']}.")), None)
        if first is not None:
            return frozenset(names[first:])
    raise InputError(f"freeze: {type(model).__name__} does not say which block is its last; use none or backbone")


def _frozen_modules(model: nn.Module) -> frozenset[str]:
    """
    Return the names of the modules that must stay in ``eval()``: none of them holds a trained parameter.

    Dropout and stochastic depth have no parameters: they are frozen inside a frozen module, and before the last one; a
    head's dropout, which comes after it, is not.
    """
    modules = dict(model.named_modules())
    parameters = {name: list(module.parameters()) for name, module in modules.items()}
    frozen = {name for name, own in parameters.items() if own and not any(each.requires_grad for each in own)}
    last = max((i for i, name in enumerate(modules) if name in frozen), default=-1)
    before = {name for i, name in enumerate(modules) if i < last and not parameters[name]}
    inside = {name for name in modules if any(name.startswith(f"{each}.") for each in frozen)}
    return frozenset(frozen | before | inside)
