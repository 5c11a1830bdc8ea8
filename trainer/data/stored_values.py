"""
What the header makes of a stored value: how bright it is, or that it is padding.

Both are tables with one entry a stored value, so that it does not matter how many pixels there are. What is wrong with the
header comes out as whatever pydicom raises, or as a ValueError.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset as DicomDataset
from pydicom.pixels.processing import apply_windowing


def stored_values(dtype: np.dtype[Any]) -> NDArray[np.int64]:
    """Return every value of *dtype*, in the order of its unsigned bit patterns."""
    return np.arange(2 ** (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}").view(dtype).astype(np.int64)


def brightness_table(dataset: DicomDataset, dtype: np.dtype[Any], *, apply_window: bool) -> NDArray[np.float32]:
    """Return how bright each stored value is: modality LUT, VOI, then polarity, in this order."""
    values = _modality(dataset, stored_values(dtype))
    if apply_window:
        values = _voi(dataset, values)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = -values  # the scale is set later, from the breast's pixels
    if not np.isfinite(values).all():
        raise ValueError("modality LUT or window gives values that are not finite")
    return values.astype(np.float32)


def _modality(dataset: DicomDataset, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return *values* after the modality LUT or the rescale slope, if the file has one."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(dataset, dataset.ModalityLUTSequence[0], values.astype(np.float64))
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    scaled: NDArray[np.float64] = values.astype(np.float64) * float(1 if slope is None else slope)
    return scaled + float(0 if intercept is None else intercept)


def _voi(dataset: DicomDataset, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return *values* after the first VOI LUT, else the first window, else unchanged."""
    if dataset.get("VOILUTSequence"):
        return _look_up(dataset, dataset.VOILUTSequence[0], values)
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return values
    windowed: NDArray[np.float64] = apply_windowing(values, dataset, index=0)
    return windowed


def _look_up(dataset: DicomDataset, item: DicomDataset, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Return *values* looked up in the LUT of *item*; those outside of it take its first or last entry.

    Not pydicom's `apply_voi`, which counts the entries of an 8-bit LUT in 8 bits and wraps around.
    """
    entries, first, _ = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, dtype=f"{order}u2")
    table = np.atleast_1d(np.asarray(data, dtype=np.float64))
    entries = entries or 2**16  # 16 bits cannot say 65536
    if len(table) < entries:
        raise ValueError(f"a LUT of {len(table)} entries, expected {entries}")
    looked_up: NDArray[np.float64] = table[np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)]
    return looked_up


def padding_table(dataset: DicomDataset, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Return which stored values are padding: those from the padding value to the range limit, which is absent mostly."""
    values = stored_values(dtype)
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(len(values), dtype=np.bool_)
    ends = [_as_pattern(int(value), dtype)]
    limit = dataset.get("PixelPaddingRangeLimit")
    if limit is not None:
        ends.append(_as_pattern(int(limit), dtype))
    return (values >= min(ends)) & (values <= max(ends))


def _as_pattern(value: int, dtype: np.dtype[Any]) -> int:
    """Return *value* as *dtype* reads its bits: some writers store a signed padding value as an unsigned one."""
    bits = 8 * dtype.itemsize
    unsigned: int = value % 2**bits
    return unsigned - 2**bits if dtype.kind == "i" and unsigned >= 2 ** (bits - 1) else unsigned
