"""Mixed precision: the type of the forward pass, the gradient scaler, and clipping in between."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.records import Dtype

# torch begins at 2**16, overflows until the scale fits, and in a short epoch that looks like divergence.
_FIRST_SCALE = 2.0**8
_GROWTH_INTERVAL = 100  # steps
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """How a step computes. Only float16 needs the scaler; otherwise it is switched off and does nothing."""

    device_type: str
    dtype: torch.dtype
    scaler: torch.amp.GradScaler
    clip_norm: float
    """Largest norm of the gradient; 0 is off."""

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of *loss*, scaled where there is a scaler."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self, optimizer: Optimizer) -> Tensor:
        """
        Update the parameters of *optimizer* once, by the gradients so far; return whether that was skipped: a bool scalar on
        the device.

        Nothing is read back from the device, except by the scaler with an optimiser that is not fused.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.scaler.unscale_(optimizer)  # clip true gradients, not scaled ones
        norm = self._clip(parameters)
        self.scaler.step(optimizer)  # skips the update if a gradient overflowed
        self.scaler.update()
        # The scaler skips exactly where a gradient is not finite, and then neither is their norm.
        return ~torch.isfinite(norm) & self.scaler.is_enabled()

    def _clip(self, parameters: list[nn.Parameter]) -> Tensor:
        """Clip the gradients of *parameters* in place if clipping is on; return their norm before."""
        if self.clip_norm > 0:
            return nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def build_precision(dtype: Dtype, device: torch.device, clip_norm: float) -> Precision:
    """Return how steps in *dtype* on *device* compute."""
    return Precision(
        device_type=device.type,
        dtype=_TYPES[dtype],
        scaler=torch.amp.GradScaler(
            device.type, init_scale=_FIRST_SCALE, growth_interval=_GROWTH_INTERVAL, enabled=dtype == "float16"
        ),
        clip_norm=clip_norm,
    )
