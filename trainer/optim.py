"""The optimiser with its two groups, and the rates of an epoch."""

from __future__ import annotations

import math

import torch
from torch.optim import Optimizer

from trainer.config import OptimisationConfig
from trainer.model import Network

_BETAS = (0.9, 0.999)


def build_optimizer(config: OptimisationConfig, network: Network, *, fused: bool | None = None) -> Optimizer:
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
    return kind(groups, betas=_BETAS, weight_decay=config.weight_decay_resolved, fused=fused)


def lr_factor(epoch: int, *, warmup_epochs: int, epochs: int) -> float:
    """
    Return what the rates are multiplied with in *epoch*, from 0: (e+1)/N in the N epochs of warm-up, then half a cosine.

    Source: Loshchilov and Hutter, SGDR (2017), equation 5, one period.
    """
    if epoch < warmup_epochs:
        return (epoch + 1) / warmup_epochs
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


def learning_rates(config: OptimisationConfig, epoch: int) -> dict[str, float]:
    """Return the rate of each group in *epoch*."""
    factor = lr_factor(epoch, warmup_epochs=config.warmup_epochs, epochs=config.epochs)
    return {"head": config.lr * factor, "backbone": config.backbone_lr * factor}


def set_learning_rates(optimizer: Optimizer, config: OptimisationConfig, epoch: int) -> dict[str, float]:
    """Set the rates of *optimizer* for *epoch*; return them by group."""
    rates = learning_rates(config, epoch)
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
