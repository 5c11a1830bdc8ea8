"""What can go wrong while one configuration is trained, by whose fault it is."""

from __future__ import annotations


class TrainerError(Exception):
    """Root of everything that the trainer raises on purpose."""


class InputError(TrainerError):
    """
    Wrong input: a file, a row or a field that is not what it must be.

    The message is one line that names the place and what was expected there.
    """


class DataError(TrainerError):
    """The data set cannot be used as it is: too few patients, a class without images, other data than the study's."""


class OtherDataError(DataError):
    """The data are not those that were expected, by their hash."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"other data: their hash is {found[:12]}, expected {expected[:12]}")
        self.expected = expected
        self.found = found


class WeightsUnavailableError(InputError):
    """The weights that were asked for cannot be had here; the message says how to get them."""


class DivergedError(TrainerError):
    """The loss is not finite, or too many gradients were not. The configuration's fault."""

    def __init__(self, fold: int, epoch: int, step: int, reason: str = "loss is not finite") -> None:
        super().__init__(f"{reason} in fold {fold}, epoch {epoch}, step {step}")
        self.fold = fold
        self.epoch = epoch
        self.step = step


class OutOfMemoryError(TrainerError):
    """The device has too little memory for this configuration. The configuration's fault."""


class StopRequestedError(TrainerError):
    """Somebody asked to stop; everything up to the last finished epoch is saved."""
