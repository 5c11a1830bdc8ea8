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
from pydicom.multival import MultiValue

_LARGEST = 1e100
"""Far beyond all that a header can mean."""
_STEEP = 700
"""Beyond this, exp overflows."""


def stored_values(dtype: np.dtype[Any]) -> NDArray[np.int64]:
    """Return every value of *dtype*, in the order of its unsigned bit patterns."""
    return np.arange(2 ** (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}").view(dtype).astype(np.int64)


def brightness_table(dataset: DicomDataset, dtype: np.dtype[Any], *, apply_window: bool) -> NDArray[np.float32]:
    """
    Return how bright each stored value is, 0..1 over all of them: modality LUT, then VOI; the polarity is another's business.

    Without a unit, so that neither slope nor intercept costs precision: next to 1e9, float32 knows no 1.
    """
    values = _modality(dataset, stored_values(dtype))
    if apply_window:
        values = _voi(dataset, values)
    low, high = float(values.min()), float(values.max())
    if not abs(low) + abs(high) < _LARGEST:  # NaN is not either
        raise ValueError("modality LUT or window gives values that are no numbers")
    brightness: NDArray[np.float32] = ((values - low) / ((high - low) or 1)).astype(np.float32)
    return brightness


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
    center, width = (_first(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or center == width == 0:  # zeros are how some writers leave it empty
        return values
    return _window(dataset, values, center, width)


def _first(value: Any) -> float | None:
    """Return the first number of a header's value, which may have several, or none, or an empty one."""
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return None if value is None or str(value).strip() == "" else float(value)


def _window(dataset: DicomDataset, values: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """
    Return *values* as the window shows them, 0..1. Source: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3.

    Not pydicom's `apply_windowing`, which turns an image over whose rescale slope is negative.
    """
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip(" \0").upper()
    if function == "LINEAR":  # made for integers: the ends are half a step inside
        center, width = center - 0.5, width - 1
    if function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}:
        raise ValueError("unknown VOI LUT function")
    if width < 0 or (width == 0 and function != "LINEAR"):
        raise ValueError("a window without width")
    if width == 0:
        return (values > center).astype(np.float64)
    position = (values - center) / width
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * position, -_STEEP, _STEEP)))
    return np.clip(position + 0.5, 0, 1)


def _look_up(dataset: DicomDataset, item: DicomDataset, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Return *values* looked up in the LUT of *item*; those outside of it take its first or last entry.

    Not pydicom's `apply_voi`, which counts the entries of an 8-bit LUT in 8 bits and wraps around.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries % 2**16 or 2**16  # 16 bits cannot say 65536, and signed ones not 40000
    if values.min() < 0 and first >= 2**15:  # signed, and read as unsigned
        first -= 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, dtype=f"{order}u2")
    table = np.atleast_1d(np.asarray(data, dtype=np.float64))
    if len(table) < entries <= 2 * len(table) and bits <= 8:  # noqa: PLR2004  two entries in each word
        table = table.astype("<u2").view(np.uint8).astype(np.float64)
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
    bits = int(dataset.BitsStored)
    ends = [_as_stored(int(value), bits, dtype)]
    limit = dataset.get("PixelPaddingRangeLimit")
    if limit is not None:
        ends.append(_as_stored(int(limit), bits, dtype))
    return (values >= min(ends)) & (values <= max(ends))


def _as_stored(value: int, bits: int, dtype: np.dtype[Any]) -> int:
    """
    Return *value* as a pixel with its bit pattern is read, of which *bits* are stored.

    Some writers give a signed padding value as an unsigned one, or with bits set beyond those that are stored.
    """
    unsigned: int = value % 2**bits
    return unsigned - 2**bits if dtype.kind == "i" and unsigned >= 2 ** (bits - 1) else unsigned
