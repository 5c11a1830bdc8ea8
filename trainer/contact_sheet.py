"""A picture of images before and after preprocessing, so that a person sees what a network will see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trainer.errors import InputError
from trainer.files import written_whole

_PAIRS_A_ROW = 4
_INCHES = 1.7
_DPI = 110


@dataclass(frozen=True, eq=False)
class Shown:
    """One image on the sheet. Nothing that tells who it is."""

    class_name: str
    laterality: str | None
    view: str | None
    before: NDArray[np.uint8] | None
    """(H, W), as stored; None where that cannot be shown."""
    after: NDArray[np.uint8]
    """(H, W), as the network sees it."""


def draw_contact_sheet(images: Sequence[Shown], path: Path) -> None:
    """
    Draw *images*, each before and after, into the PNG *path*.

    Raises:
        InputError: it cannot be written there.
    """
    rows = math.ceil(len(images) / _PAIRS_A_ROW)
    figure = Figure(figsize=(_PAIRS_A_ROW * 2 * _INCHES, rows * (_INCHES + 0.3) + 0.4), layout="constrained")
    figure.suptitle("left: as stored; right: as the network sees it", fontsize=9)
    grid = figure.subplots(rows, 2 * _PAIRS_A_ROW, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if place // 2 < len(images):
            _draw(axes, images[place // 2], is_before=place % 2 == 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI)
    except OSError as error:
        raise InputError(f"{path}: the picture cannot be written there: {error.strerror}") from error


def _draw(axes: Axes, image: Shown, *, is_before: bool) -> None:
    """Draw one half of a pair."""
    pixels = image.before if is_before else image.after
    if pixels is not None:
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    if is_before:
        where = " ".join(part for part in (image.laterality, image.view) if part)
        axes.set_title(f"class {image.class_name}  {where}", fontsize=8, loc="left")
