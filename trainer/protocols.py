"""
What the trainer needs of the outside, and nothing more.

By hand these are a folder and a log line; in a search, storage's classes fit them: an attempt's folder, a claim that can be
lost, a signal that arrived. The trainer never learns which.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from trainer.records import EpochRecord, FoldResult


class RunFolder(Protocol):
    """Where the files of a run go."""

    @property
    def path(self) -> Path:
        """The folder of what concerns the whole run; it exists."""
        ...

    def fold(self, fold: int) -> Path:
        """
        Return the folder in which *fold* is trained; it exists.

        What an earlier attempt at the fold left to continue from (`last_model.pth`) is already there.
        """
        ...

    def published(self, fold: int) -> Path | None:
        """Return the folder of *fold* if it is finished and its number settled: it is taken as it is. Else None."""
        ...


class Listener(Protocol):
    """Who is told how the training goes. What it raises ends the training and reaches the caller as it is."""

    def epoch_finished(self, fold: int, record: EpochRecord, *, last: bool) -> None:
        """Take note that an epoch is over and saved, and whether it is the fold's last."""
        ...

    def fold_resumed(self, fold: int, history: Sequence[EpochRecord], *, last: bool) -> None:
        """
        Take note that a fold goes on after the epochs in *history*, and whether the last of them is the fold's last.

        An earlier process saved them, and may have died before it could tell of all.
        """
        ...

    def fold_finished(self, result: FoldResult) -> None:
        """Publish a fold whose files are complete in `RunFolder.fold`; afterwards `RunFolder.published` returns it."""
        ...


class StopSignal(Protocol):
    """Whether somebody asked to stop. A `threading.Event` is one."""

    def is_set(self) -> bool:
        """Return whether to stop as soon as possible; asked between steps, so it must be cheap."""
        ...
