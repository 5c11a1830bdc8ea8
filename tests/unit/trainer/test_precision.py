"""Mixed precision: clipping sees true gradients, and skipped steps are counted."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from trainer.precision import Precision, build_precision

CPU = torch.device("cpu")


def step(precision: Precision, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Take one step by the gradients of *loss* alone; return whether it was skipped."""
    optimizer.zero_grad(set_to_none=True)
    precision.backward(loss)
    return precision.update(optimizer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_clipping_bounds_the_true_gradient(dtype: Literal["float32", "bfloat16", "float16"]) -> None:
    """With plain gradient descent at rate 1 the step is at most the clip norm long, scaled or not."""
    weight = torch.nn.Parameter(torch.zeros(4))
    precision = build_precision(dtype, CPU, clip_norm=0.5)
    skipped = step(precision, (weight * torch.tensor([3.0, 4.0, 0.0, 0.0])).sum(), torch.optim.SGD([weight], lr=1.0))
    assert not skipped
    assert torch.allclose(weight.detach(), torch.tensor([-0.3, -0.4, 0.0, 0.0]), atol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_an_overflow_is_skipped_and_counted(clip_norm: float) -> None:
    """The parameters stay, the scale halves, and the step says that it was skipped."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    precision = build_precision("float16", CPU, clip_norm)
    scale = precision.scaler.get_scale()
    assert step(precision, (weight * torch.inf).sum(), optimizer)
    assert weight.item() == 0
    assert precision.scaler.get_scale() == scale / 2
    assert not step(precision, (weight * 2).sum(), optimizer)
    assert weight.item() != 0


def test_gradients_of_parts_add_up_before_they_are_clipped() -> None:
    """Two backward passes and one update: the clip sees their sum, (3, 4) scaled to a length of 0.5."""
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    precision = build_precision("float16", CPU, clip_norm=0.5)
    precision.backward((weight * torch.tensor([3.0, 0.0])).sum())
    precision.backward((weight * torch.tensor([0.0, 4.0])).sum())
    assert not precision.update(optimizer)
    assert torch.allclose(weight.detach(), torch.tensor([-0.3, -0.4]), atol=1e-5)


def test_without_a_scaler_nothing_is_skipped() -> None:
    """In float32 a bad gradient is not hidden: the loss will show it."""
    weight = torch.nn.Parameter(torch.zeros(1))
    precision = build_precision("float32", CPU, 1.0)
    assert not step(precision, (weight * torch.inf).sum(), torch.optim.SGD([weight], lr=1.0))
