"""The optimiser with its two groups, and the rates of an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from trainer.config import OptimisationConfig
from trainer.model import Network

_BETAS = (0.9, 0.999)


def build_optimizer(config: OptimisationConfig, network: Network, *, fused: bool = False) -> Optimizer:
    """
    Return the optimiser over what is trained in *network*: group ``head``, and ``backbone`` if any of it is trained.

    Args:
        config: rates and weight decay.
        network: with its frozen parameters marked.
        fused: one kernel for all parameters. A gradient scaler then need not be waited for.
    """
    groups = [{"params": network.head_parameters(), "lr": config.lr, "name": "head"}]
    backbone = network.backbone_parameters()
    if backbone:
        groups.append({"params": backbone, "lr": config.backbone_lr, "name": "backbone"})
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    # None, and not False, leaves torch its own choice between a loop and one launch for many tensors.
    return kind(groups, betas=_BETAS, weight_decay=config.weight_decay_resolved, fused=fused or None)


def lr_factor(config: OptimisationConfig, scores: Sequence[float | None]) -> float:
    """
    Return what the rates are multiplied with in the epoch after those that gave *scores*.

    (e+1)/N in epoch e, from 0, of the N epochs of warm-up; then half a cosine, or what the plateau scheduler leaves. It follows
    from the epochs so far alone: there is no state to save.

    Args:
        config: epochs, warm-up, scheduler.
        scores: The validation objective of each epoch so far; None where it does not exist.
    """
    epoch, warmup = len(scores), config.warmup_epochs
    if epoch < warmup:
        return (epoch + 1) / warmup
    if config.plateau_scheduler:
        return config.plateau_factor ** plateaus(scores, warmup=warmup, patience=config.plateau_patience)
    return cosine(epoch - warmup, config.epochs - warmup)


def cosine(epoch: int, epochs: int) -> float:
    """
    Return half a cosine from 1 in epoch 0 towards 0, which it would reach in epoch *epochs*.

    Source: Loshchilov and Hutter, SGDR (2017), equation 5, one period.
    """
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def plateaus(scores: Sequence[float | None], *, warmup: int, patience: int) -> int:
    """
    Return how often more than *patience* epochs in a row went by without a score above the best before; each time the count
    begins anew. Epochs of the warm-up can be best and are never counted. A score that does not exist is not above anything.

    Source: torch.optim.lr_scheduler.ReduceLROnPlateau with mode "max" and threshold 0.
    """
    best, waited, count = -math.inf, 0, 0
    for epoch, score in enumerate(scores):
        if score is not None and score > best:
            best, waited = score, 0
        elif epoch >= warmup:
            waited += 1
        if waited > patience:
            count, waited = count + 1, 0
    return count


def set_learning_rates(
    optimizer: Optimizer, config: OptimisationConfig, scores: Sequence[float | None]
) -> dict[str, float]:
    """Set the rates of *optimizer* for the epoch after those that gave *scores*; return them by group."""
    factor = lr_factor(config, scores)
    rates = {"head": config.lr * factor, "backbone": config.backbone_lr * factor}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
