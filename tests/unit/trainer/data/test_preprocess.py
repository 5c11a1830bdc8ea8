from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.config import PreprocessingConfig
from trainer.data.image_file import read_header, read_mammogram
from trainer.data.mammogram import Mammogram, RejectedError
from trainer.data.preprocess import preprocess, without_preprocessing
from trainer.data.records import Code

CONFIG = PreprocessingConfig(img_size=128)


def mammogram(
    stored: NDArray[np.uint8] | NDArray[np.uint16], padding: int | None = None, *, is_inverse: bool = False
) -> Mammogram:
    """Stored values that are as bright as they are large."""
    table = np.arange(2 ** (8 * stored.dtype.itemsize), dtype=np.float32)
    return Mammogram(stored, table, table == (-1 if padding is None else padding), is_inverse)


def without(**fields: object) -> PreprocessingConfig:
    """The configuration with other values for *fields*."""
    return CONFIG.model_copy(update=fields)


def image_or_blank(
    of: Mammogram,
    config: PreprocessingConfig,
    make: Callable[[Mammogram, PreprocessingConfig], NDArray[np.uint8]] = preprocess,
) -> NDArray[np.uint8] | None:
    """The image of a mammogram, or None if it is blank."""
    try:
        image = make(of, config)
    except RejectedError as rejected:
        if rejected.code != Code.BLANK:
            raise
        return None
    assert image.shape == (config.img_size, config.img_size)
    assert image.dtype == np.uint8
    return image


def test_one_image_in_many_encodings(real_data: Path) -> None:
    """
    Nine files that show one image agree after preprocessing; those with a sigmoid window and raw values differ, as they must.

    The raw one has the pixels of the inverse one: only its header tells that they follow another law.
    """
    config = PreprocessingConfig(img_size=512)
    files = {path.stem: path for path in sorted((real_data / "mg_dicom" / "derived").glob("*.dcm"))}
    images = {
        name: preprocess(read_mammogram(path, apply_window=True), config).astype(float) for name, path in files.items()
    }
    others = [images.pop("mg_for_presentation_sigmoid_padding"), images.pop("mg_for_processing")]
    assert len(images) == 9
    for image in images.values():
        assert np.abs(image - images["explicit_le"]).mean() <= 2
        assert image.std() > 20
    for image in others:
        assert np.abs(image - images["explicit_le"]).mean() > 2
        assert image.std() > 20
    raw = {name for name, path in files.items() if read_header(path).for_processing}
    assert raw == {"mg_for_processing"}


def test_raw_values_become_their_logarithm(breast: NDArray[np.uint16]) -> None:
    """X-rays through twice the tissue are the square of what they were; the picture of it is that of the tissue."""
    tissue = breast.astype(float) / breast.max()
    raw = np.rint(60000 * np.exp(-3 * tissue)).astype(np.uint16)
    seen = preprocess(dataclasses.replace(mammogram(raw), is_inverse=True, is_linear=True), CONFIG).astype(int)
    plain = preprocess(mammogram(breast), CONFIG).astype(int)
    assert np.abs(seen - plain).mean() < 1
    as_is = preprocess(
        dataclasses.replace(mammogram(raw), is_inverse=True, is_linear=True),
        CONFIG.model_copy(update={"log_raw": False}),
    )
    assert np.abs(as_is.astype(int) - plain).mean() > 5


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


OPTIONS = [
    {},
    {"trim_border": False, "crop_breast": False, "chest_wall_left": False, "keep_aspect": False, "pad": "both"},
    {"crop_breast": False, "pad": "both"},
    {"keep_aspect": False},
    {"trim_border": False, "chest_wall_left": False},
    {"rescale_low": 0, "rescale_high": 100, "invert_monochrome1": False},
    {"rescale_low": 49, "rescale_high": 51},
    {"img_size": 33},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
        (3, 3),
        (1, 50),
        (50, 1),
        (700, 40),
        (40, 700),
        (1025, 999),
        (1, 70000),
        (70000, 1),
        (2, 40000),
    ],
)
def test_any_shape(shape: tuple[int, int], options: dict[str, object]) -> None:
    """Images of odd shapes become a square, or are blank, whatever they show; nothing else."""
    height, width = shape
    noise = np.random.default_rng(1).integers(0, 4096, shape).astype(np.uint16)
    gradient = np.add.outer(np.arange(height), np.arange(width)).astype(np.uint16)
    one_pixel = np.zeros(shape, dtype=np.uint16)
    one_pixel[height // 2, width // 2] = 65535
    half = np.zeros(shape, dtype=np.uint16)
    half[:, : (width + 1) // 2] = 1000
    white = np.full(shape, 65535, dtype=np.uint16)
    for stored in (noise, gradient, gradient[::-1].copy(), one_pixel, half, white, (noise >> 4).astype(np.uint8)):
        for of in (
            mammogram(stored),
            mammogram(stored, is_inverse=True),
            mammogram(stored, padding=int(stored[0, 0])),
            mammogram(stored, padding=int(stored.max())),
        ):
            image_or_blank(of, without(**options))
            image_or_blank(of, without(**options), without_preprocessing)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_image(data: st.DataObject) -> None:
    """Whatever the pixels and the configuration, there is an image or it is blank; and an image is not empty."""
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    values = data.draw(st.lists(st.integers(0, 65535), min_size=1, max_size=6))
    places = data.draw(st.binary(min_size=8, max_size=8))
    random = np.random.default_rng(int.from_bytes(places, "little"))
    coarse = random.choice(np.array(values, dtype=np.uint16), (1 + height // 4, 1 + width // 4))
    stored = np.repeat(np.repeat(coarse, 4, axis=0), 4, axis=1)[:height, :width].copy()
    config = PreprocessingConfig(
        img_size=data.draw(st.sampled_from([32, 45])),
        invert_monochrome1=data.draw(st.booleans()),
        rescale_low=data.draw(st.sampled_from([0, 0.5, 30])),
        rescale_high=data.draw(st.sampled_from([60, 99.5, 100])),
        trim_border=data.draw(st.booleans()),
        crop_breast=data.draw(st.booleans()),
        chest_wall_left=data.draw(st.booleans()),
        keep_aspect=data.draw(st.booleans()),
        pad=data.draw(st.sampled_from(["right", "both"])),
    )
    padding = data.draw(st.none() | st.sampled_from(values))
    image = image_or_blank(mammogram(stored, padding, is_inverse=data.draw(st.booleans())), config)
    assert image is None or image.any()


@pytest.mark.parametrize("options", OPTIONS[:6], ids=range(6))
@pytest.mark.parametrize("factor", [2, 7, 16])
def test_units_do_not_matter(breast: NDArray[np.uint16], options: dict[str, object], factor: int) -> None:
    """Stored values times a factor, or plus an offset, give the same image."""
    expected = preprocess(mammogram(breast), without(**options))
    for other in (breast * factor, breast + factor):
        image = preprocess(mammogram(other.astype(np.uint16)), without(**options))
        assert np.abs(image.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("options", OPTIONS[:6], ids=range(6))
def test_polarity(breast: NDArray[np.uint16], options: dict[str, object]) -> None:
    """An image whose smallest value is meant to be white equals the plain one, unless the step is off."""
    config = without(**options)
    plain = preprocess(mammogram(breast), config)
    turned = mammogram((4095 - breast).astype(np.uint16), is_inverse=True)
    if config.invert_monochrome1:
        assert np.abs(preprocess(turned, config).astype(int) - plain).max() <= 1
    unmarked = dataclasses.replace(turned, is_inverse=False)
    off = config.model_copy(update={"invert_monochrome1": False})
    np.testing.assert_array_equal(preprocess(turned, off), preprocess(unmarked, off))
    assert np.abs(preprocess(turned, off).astype(int) - plain).mean() > 20


def test_padding_around_monochrome1(breast: NDArray[np.uint16]) -> None:
    """A large area of padding around a MONOCHROME1 image, as white as it is there, becomes as dark as the air."""
    inverse = (4095 - breast).astype(np.uint16)
    expected = preprocess(mammogram(inverse, is_inverse=True), CONFIG)
    padded = np.zeros((300, 300), dtype=np.uint16)
    padded[50:250, :160] = inverse
    image = preprocess(mammogram(padded, padding=0, is_inverse=True), CONFIG)
    assert np.abs(image.astype(int) - expected).mean() < 1


def test_padding_in_the_middle_of_the_range(breast: NDArray[np.uint16]) -> None:
    """Padding of a grey that tissue has too becomes dark where it reaches the edge, and nowhere else."""
    padded = np.full((300, 300), 2005, dtype=np.uint16)
    padded[50:250, :160] = breast
    padded[150, 5:20] = 2005  # inside of the breast
    image = preprocess(mammogram(padded, padding=2005), CONFIG)
    assert np.abs(image.astype(int) - preprocess(mammogram(breast), CONFIG)).mean() < 1.5


def test_a_label_far_from_the_breast_is_cut_off(breast: NDArray[np.uint16]) -> None:
    """Letters burnt in beside the breast are in no crop, and in the image without one."""
    labelled = np.zeros((200, 300), dtype=np.uint16)
    labelled[:, :160] = breast
    letters = cv2.putText(np.zeros((200, 300), np.uint8), "L-CC", (200, 40), cv2.FONT_HERSHEY_SIMPLEX, 1, 255, 4)
    labelled[letters > 0] = 4000
    padded = np.zeros((200, 300), dtype=np.uint16)
    padded[:, :160] = breast
    cropped = preprocess(mammogram(labelled), CONFIG)
    assert np.abs(cropped.astype(int) - preprocess(mammogram(padded), CONFIG)).mean() < 1
    assert preprocess(mammogram(labelled), without(crop_breast=False))[:, 90:].max() == 255


def test_stretching(breast: NDArray[np.uint16]) -> None:
    """Without the aspect the breast fills the square; what is padded is at the right, or at both sides."""
    stretched = preprocess(mammogram(breast), without(keep_aspect=False))
    right = preprocess(mammogram(breast), CONFIG)
    both = preprocess(mammogram(breast), without(pad="both"))
    assert stretched[64].astype(bool).mean() > 0.97
    width = int(np.flatnonzero(right.any(axis=0))[-1]) + 1
    assert width < 100
    left = (128 - width) // 2
    assert np.abs(both[:, left : left + width].astype(int) - right[:, :width]).mean() < 2
    assert not both[:, : left - 2].any()


def test_percentiles(breast: NDArray[np.uint16]) -> None:
    """The percentiles of the breast become black and white: more of it is saturated where they are closer together."""
    shares = [
        float(
            np.isin(preprocess(mammogram(breast), without(rescale_low=low, rescale_high=high))[:, :80], (0, 255)).mean()
        )
        for low, high in ((0, 100), (5, 95), (25, 75), (45, 55))
    ]
    assert shares == sorted(shares)
    assert shares[-1] > shares[0] + 0.4


def test_without_preprocessing(breast: NDArray[np.uint16]) -> None:
    """Shown as it is stored, an image is neither turned over nor cropped, and has its aspect."""
    for of in (mammogram(breast), mammogram(breast, is_inverse=True), mammogram(breast, padding=0)):
        image = without_preprocessing(of, CONFIG)
        assert image.shape == (128, 128)
        assert image.max() >= 254
        left = (128 - round(160 * 128 / 200)) // 2
        assert not image[:, :left].any()
        assert image[64, left + 2] > 0
        assert not image[:5].any()
    assert image_or_blank(mammogram(np.full((9, 9), 5, np.uint16)), CONFIG, without_preprocessing) is None


def test_mammograms_are_not_changed(breast: NDArray[np.uint16]) -> None:
    """Preprocessing leaves the mammogram as it was, so that it can be done again with other options."""
    of = mammogram(breast.copy(), padding=2005, is_inverse=True)
    table, padding = of.brightness.copy(), of.padding.copy()
    first = preprocess(of, CONFIG)
    without_preprocessing(of, CONFIG)
    np.testing.assert_array_equal(of.stored, breast)
    np.testing.assert_array_equal(of.brightness, table)
    np.testing.assert_array_equal(of.padding, padding)
    np.testing.assert_array_equal(first, preprocess(of, CONFIG))
