"""
Stored pixels -> the uint8 image that a network sees.

The order: brightness of each stored value (settled by the reader: modality LUT, then VOI LUT or window) -> intensity law and
polarity -> trim the frame -> find the breast -> rescale over its pixels -> crop -> chest wall to the left -> resize, aspect
kept -> pad.

Where things are is decided on a thumbnail of about `_THUMBNAIL` pixels a side, and values are mapped by a table with one entry a
stored value, so that only the crop and the resize touch a full-size image.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.config import PreprocessingConfig
from trainer.data.mammogram import Mammogram, RejectedError
from trainer.data.records import Code

PREPROCESSING_VERSION = 2
"""Part of the cache's key: to be raised with every change that changes a pixel."""

_THUMBNAIL = 512
_WHITE = 98.0
"""Percentile of the thumbnail that counts as white when the breast is looked for."""
_FRAME_DEPTH = 0.04
"""A frame is looked for in this share of each side, and told from the breast by what lies this deep behind it."""
_BRIGHT_SHARE = 0.5
"""A line at the edge belongs to a frame if more than this share of it is bright, and half as much of what lies behind."""
_OPENING = 0.03
"""What is narrower than this share of the thumbnail's longer side is no breast but a line or a letter."""
_TISSUE_OF_OTSU = 0.4
"""Otsu's threshold parts dense from fatty tissue as often as breast from air; this part of it keeps the fat."""


@dataclass(frozen=True)
class Box:
    """Rows top..bottom and columns left..right, ends excluded, in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns to index an array with."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def preprocess(mammogram: Mammogram, config: PreprocessingConfig) -> NDArray[np.uint8]:
    """
    Return the (img_size, img_size) uint8 image of *mammogram*.

    Raises:
        RejectedError: BLANK, there is nothing to see in it.
    """
    step = max(1, max(mammogram.stored.shape) // _THUMBNAIL)
    if mammogram.is_linear and config.log_raw:
        smallest = 1 / len(mammogram.brightness)  # what no X-ray reaches has a logarithm too
        mammogram = dataclasses.replace(mammogram, brightness=np.log(mammogram.brightness + np.float32(smallest)))
    if mammogram.is_inverse and config.invert_monochrome1:
        mammogram = dataclasses.replace(mammogram, brightness=-mammogram.brightness)
    mammogram = _without_padding(mammogram, step)
    brightness = mammogram.brightness[mammogram.stored[::step, ::step]]
    thumbnail = _to_8_bit(brightness)
    whole = Box(0, thumbnail.shape[0], 0, thumbnail.shape[1])
    frame = _find_inside_of_frame(thumbnail) if config.trim_border else whole
    breast = _find_breast(thumbnail, frame)
    table = _rescale_table(mammogram.brightness, brightness[breast], config)
    box = _bounding_box(breast) if config.crop_breast else frame
    crop = mammogram.stored[_enlarge(box, step, mammogram.stored.shape).slices]
    # Not table[crop], which makes an index of 8 bytes of every pixel first.
    grey = cv2.LUT(crop, table).astype(np.uint8, copy=False)
    image = _resize(grey, config.img_size, keep_aspect=config.keep_aspect)
    if config.chest_wall_left and _chest_wall_is_right(breast[box.slices]):
        image = image[:, ::-1]
    return _pad(image, config)


def without_preprocessing(mammogram: Mammogram, config: PreprocessingConfig) -> NDArray[np.uint8]:
    """
    Return the (img_size, img_size) uint8 image of *mammogram* as its stored values are, from the smallest to the largest.

    Raises:
        RejectedError: BLANK, all values are the same.
    """
    step = max(1, max(mammogram.stored.shape) // config.img_size)
    values = mammogram.brightness[mammogram.stored[::step, ::step]]
    low, high = float(values.min()), float(values.max())
    if high <= low:
        raise RejectedError(Code.BLANK, "all pixels have one value")
    grey = ((values - low) * (255 / (high - low))).astype(np.uint8)
    return _pad(_resize(grey, config.img_size, keep_aspect=True), config.model_copy(update={"pad": "both"}))


def _without_padding(mammogram: Mammogram, step: int) -> Mammogram:
    """
    Return *mammogram* with padding as dark as the darkest other pixel.

    Padding darker than everything is a matter of the table. But some writers pad with a value that tissue has too, the
    brightest for one: there only areas that reach the edge of the image are padding.
    """
    if not mammogram.padding.any():
        return mammogram
    sample = mammogram.stored[::step, ::step]
    seen = sample[~mammogram.padding[sample]]
    if seen.size == 0:
        raise RejectedError(Code.BLANK, "nothing but padding")
    darkest = seen[np.argmin(mammogram.brightness[seen])]
    if mammogram.brightness[mammogram.padding].max() <= mammogram.brightness[darkest]:
        brightness = np.where(mammogram.padding, mammogram.brightness[darkest], mammogram.brightness)
        return dataclasses.replace(mammogram, brightness=brightness)
    count, areas = cv2.connectedComponents(mammogram.padding[mammogram.stored].astype(np.uint8))
    is_at_edge = np.zeros(count, dtype=np.bool_)
    for edge in (areas[0], areas[-1], areas[:, 0], areas[:, -1]):
        is_at_edge[edge] = True
    is_at_edge[0] = False  # what is no padding
    return dataclasses.replace(mammogram, stored=np.where(is_at_edge[areas], darkest, mammogram.stored))


def _to_8_bit(brightness: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return *brightness* from its darkest pixel, 0, to a high percentile, 255, so that a label's white sets no scale."""
    low, high = float(brightness.min()), float(np.percentile(brightness, _WHITE))
    if high <= low:
        raise RejectedError(Code.BLANK, "all pixels have one value, or nearly all")
    scaled: NDArray[np.float32] = np.clip((brightness - low) * (255 / (high - low)), 0, 255)
    return scaled.astype(np.uint8)


def _otsu(image: NDArray[np.uint8]) -> float:
    """Return Otsu's threshold, 0..255. Source: Otsu 1979, as cv2.THRESH_OTSU."""
    threshold, _ = cv2.threshold(image, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return threshold


def _find_inside_of_frame(thumbnail: NDArray[np.uint8]) -> Box:
    """Return the box inside of the bright lines that run along the edges of a scanned film."""
    bright = thumbnail > _otsu(thumbnail)
    height, width = bright.shape
    rows, columns = bright.mean(axis=1), bright.mean(axis=0)
    return Box(
        top=_frame_width(rows),
        bottom=height - _frame_width(rows[::-1]),
        left=_frame_width(columns),
        right=width - _frame_width(columns[::-1]),
    )


def _frame_width(shares: NDArray[np.float64]) -> int:
    """Return how many lines from the start on are a frame: *shares* is the bright share of each, from the edge inwards."""
    depth = max(1, round(_FRAME_DEPTH * len(shares)))
    behind = float(shares[min(depth, len(shares) - 1)])
    is_frame = (shares[:depth] > _BRIGHT_SHARE) & (behind < _BRIGHT_SHARE * shares[:depth])
    return int(np.flatnonzero(is_frame)[-1]) + 1 if is_frame.any() else 0


def _find_breast(thumbnail: NDArray[np.uint8], frame: Box) -> NDArray[np.bool_]:
    """Return which pixels of *thumbnail* are the largest bright region inside of *frame*; reject an image without one."""
    inside = thumbnail[frame.slices]
    tissue = (inside > _TISSUE_OF_OTSU * _otsu(inside)).astype(np.uint8)
    width = 2 * max(1, round(_OPENING * max(thumbnail.shape) / 2)) + 1  # odd, or the opening moves things by a pixel
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    # Beyond the edge is air: otherwise a line along the edge would count as wide.
    opened = cv2.morphologyEx(tissue, cv2.MORPH_OPEN, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    _, areas, statistics, _ = cv2.connectedComponentsWithStats(opened)
    if len(statistics) == 1:  # the background alone
        raise RejectedError(Code.BLANK, "no region that could be a breast")
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    breast = np.zeros(thumbnail.shape, dtype=np.bool_)
    breast[frame.slices] = areas == largest
    return breast


def _rescale_table(
    brightness: NDArray[np.float32], of_breast: NDArray[np.float32], config: PreprocessingConfig
) -> NDArray[np.uint8]:
    """Return the grey level of every stored value: 0 and 255 at the two percentiles of the breast's pixels."""
    low, high = np.percentile(of_breast, [config.rescale_low, config.rescale_high])
    if high <= low:
        raise RejectedError(Code.BLANK, "the breast has one value")
    scaled: NDArray[np.float32] = np.clip((brightness - low) * (255 / (high - low)), 0, 255)
    return np.rint(scaled).astype(np.uint8)


def _bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Return the smallest box around the set pixels of *mask*, of which there is one at least."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def _enlarge(box: Box, step: int, shape: tuple[int, ...]) -> Box:
    """Return *box* of a thumbnail in pixels of the image of *shape* from which it took every *step*-th."""
    return Box(box.top * step, min(box.bottom * step, shape[0]), box.left * step, min(box.right * step, shape[1]))


def _resize(image: NDArray[np.uint8], side: int, *, keep_aspect: bool) -> NDArray[np.uint8]:
    """Return *image* with its longer side *side* pixels long and the other one too, or in proportion if *keep_aspect*."""
    scale = side / max(image.shape)
    height, width = (max(1, round(length * scale)) if keep_aspect else side for length in image.shape)
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation).astype(np.uint8, copy=False)


def _chest_wall_is_right(breast: NDArray[np.bool_]) -> bool:
    """Return whether the right half of the cropped *breast* is fuller: it narrows away from the chest wall."""
    half = breast.shape[1] // 2
    return bool(breast[:, breast.shape[1] - half :].sum() > breast[:, :half].sum())


def _pad(image: NDArray[np.uint8], config: PreprocessingConfig) -> NDArray[np.uint8]:
    """Return *image* on a black square: in the middle of the height; at the left edge, or in the middle of the width too."""
    side, (height, width) = config.img_size, image.shape
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - height) // 2, 0 if config.pad == "right" else (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square
