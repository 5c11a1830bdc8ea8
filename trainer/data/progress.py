"""How far an opening is, for those who wait for it, and whether they still do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from trainer.errors import StopRequestedError
from trainer.protocols import StopSignal

Stage = Literal["reading", "decoding"]
"""Hashing files and reading their headers; decoding their pixels."""

Progress = Callable[[Stage, int, int], None]
"""Told of the stage, files done and all files, in the process that does the work; nothing is done for files known already."""


def stoppable(progress: Progress | None, stop: StopSignal | None) -> Progress:
    """
    Return *progress* that ends the opening between two files when somebody asks to *stop*.

    What is decoded until then is kept, and the next opening goes on from there.
    """

    def tell(stage: Stage, done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total)
        if stop is not None and stop.is_set():
            raise StopRequestedError(
                f"asked to stop while {stage} images: {done} of {total}; the same command goes on from there"
            )

    return tell
