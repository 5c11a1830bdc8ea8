from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.config import PreprocessingConfig
from trainer.data.dicom import Mammogram, RejectedError, read_mammogram
from trainer.data.preprocess import preprocess
from trainer.data.records import Code

CONFIG = PreprocessingConfig(img_size=128)


def mammogram(stored: NDArray[np.uint16], padding: int | None = None) -> Mammogram:
    """Stored values that are as bright as they are large."""
    table = np.arange(2**16, dtype=np.float32)
    return Mammogram(stored, table, table == padding if padding is not None else np.zeros(2**16, dtype=bool))


def without(**fields: object) -> PreprocessingConfig:
    """The configuration with other values for *fields*."""
    return CONFIG.model_copy(update=fields)


def test_one_image_in_many_encodings(real_data: Path) -> None:
    """Nine files that show one image agree after preprocessing, and the sigmoid window differs, as it must."""
    config = PreprocessingConfig(img_size=512)
    images = {
        path.stem: preprocess(read_mammogram(path, apply_window=True), config).astype(float)
        for path in sorted((real_data / "mg_dicom" / "derived").glob("*.dcm"))
        if path.stem != "mg_for_processing"
    }
    sigmoid = images.pop("mg_for_presentation_sigmoid_padding")
    assert len(images) == 9
    for image in images.values():
        assert np.abs(image - images["explicit_le"]).mean() <= 2
        assert image.std() > 20
    assert np.abs(sigmoid - images["explicit_le"]).mean() > 2


def test_scanned_films_show_the_breast_at_the_left(real_data: Path) -> None:
    """Of the scanned films, with frames and labels on them, the breast fills the height and touches the left edge."""
    for path in sorted((real_data / "mg_dicom" / "archive_cbis").rglob("*.dcm")):
        image = preprocess(read_mammogram(path, apply_window=True), CONFIG)
        assert (image[:, :3] > 30).mean() > 0.6
        assert (image[:, -30:] > 30).mean() < 0.05


def test_crop_fills_the_image_and_keeps_the_aspect(breast: NDArray[np.uint16]) -> None:
    """The breast's bounding box has the image's height, its aspect, and black beside it."""
    image = preprocess(mammogram(breast), CONFIG)
    assert image.shape == (128, 128)
    assert image.dtype == np.uint8
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    assert len(rows) >= 125
    assert columns[0] == 0
    assert len(columns) == pytest.approx(128 * 110 / 160, abs=4)


def test_rescale_uses_the_breast_alone(breast: NDArray[np.uint16]) -> None:
    """A bright label and the background do not change what the breast's values become."""
    labelled = breast.copy()
    labelled[5:15, 130:150] = 65535
    there, here = preprocess(mammogram(breast), CONFIG), preprocess(mammogram(labelled), CONFIG)
    assert np.abs(there.astype(float) - here)[:, :80].mean() < 1
    inside = there[there > 0]
    assert inside.max() == 255
    assert abs(float(np.median(inside)) - 127) < 15


def test_chest_wall_left(breast: NDArray[np.uint16]) -> None:
    """An image and its mirror image become the same, unless the step is off."""
    mirrored = np.ascontiguousarray(breast[:, ::-1])
    np.testing.assert_array_equal(preprocess(mammogram(breast), CONFIG), preprocess(mammogram(mirrored), CONFIG))
    off = without(chest_wall_left=False)
    assert (preprocess(mammogram(breast), off) != preprocess(mammogram(mirrored), off)).any()


def test_frame_is_trimmed(breast: NDArray[np.uint16]) -> None:
    """A bright frame around the film changes hardly anything, unless the step is off."""
    framed = breast.copy()
    framed[:4] = framed[-4:] = 4000
    framed[:, -4:] = 4000
    plain = preprocess(mammogram(breast), without(crop_breast=False))
    trimmed = preprocess(mammogram(framed), without(crop_breast=False))
    assert (plain > 250).mean() < 0.01
    assert (trimmed > 250).mean() < 0.01
    assert (preprocess(mammogram(framed), without(crop_breast=False, trim_border=False)) > 250).mean() > 0.02


def test_crop_off_keeps_the_background(breast: NDArray[np.uint16]) -> None:
    """Without the crop the whole image is there, with its aspect."""
    image = preprocess(mammogram(breast), without(crop_breast=False))
    assert not image[:8].any()
    assert image[64, 0] > 0


def test_padding_darker_than_everything(breast: NDArray[np.uint16]) -> None:
    """Padding below the background does not change the scale of anything."""
    shifted = breast + 500
    padded = shifted.copy()
    padded[:, 140:] = 0
    np.testing.assert_array_equal(
        preprocess(mammogram(padded, padding=0), CONFIG), preprocess(mammogram(shifted), CONFIG)
    )


def test_padding_that_equals_the_maximum(breast: NDArray[np.uint16]) -> None:
    """Where tissue has the padding's value, only the padding at the edge becomes dark."""
    saturated = breast.copy()
    saturated[90:110, 20:60] = 4095
    padded = saturated.copy()
    padded[:, 140:] = 4095
    image = preprocess(mammogram(padded, padding=4095), CONFIG)
    np.testing.assert_array_equal(image, preprocess(mammogram(saturated), CONFIG))
    assert (image == 255).sum() > 100


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_blank(value: int) -> None:
    """A constant image is refused as blank."""
    with pytest.raises(RejectedError) as error:
        preprocess(mammogram(np.full((100, 80), value, dtype=np.uint16)), CONFIG)
    assert error.value.code == Code.BLANK


def test_nothing_but_padding() -> None:
    """An image of padding is refused as blank."""
    with pytest.raises(RejectedError) as error:
        preprocess(mammogram(np.full((100, 80), 9, dtype=np.uint16), padding=9), CONFIG)
    assert error.value.code == Code.BLANK


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 3), (700, 40), (40, 700), (1025, 999)])
def test_any_shape(shape: tuple[int, int]) -> None:
    """Images of odd shapes become a square, or are blank; nothing else."""
    stored = np.random.default_rng(1).integers(0, 4096, shape).astype(np.uint16)
    try:
        image = preprocess(mammogram(stored), CONFIG)
    except RejectedError as rejected:
        assert rejected.code == Code.BLANK  # noqa: PT017  not always raised
    else:
        assert image.shape == (128, 128)
