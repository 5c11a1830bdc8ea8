from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut
from pydicom.sequence import Sequence

from trainer.data.dicom import Header, RejectedError, read_header, read_mammogram
from trainer.data.records import Code

WriteDicom = Callable[..., Path]

MALFORMED = {
    "constant_image.dcm": None,  # its pixels are fine; that there is nothing in them is found later
    "dbt_three_frames.dcm": Code.MULTIFRAME,
    "dup_sop_a.dcm": None,
    "dup_sop_b_other_pixels.dcm": None,
    "html_error_page.dcm": Code.NOT_IMAGE,
    "modality_us.dcm": Code.NOT_MAMMOGRAPHY,
    "no_pixel_data.dcm": Code.NOT_IMAGE,
    "no_preamble.dcm": None,
    "rows_too_large.dcm": Code.TRUNCATED,
    "truncated_j2k.dcm": Code.TRUNCATED,
    "truncated_native.dcm": Code.TRUNCATED,
    "zero_bytes.dcm": Code.NOT_IMAGE,
}


def outcome(path: Path) -> Code | None:
    """The code that reading *path* gives, None if it is accepted."""
    try:
        read_mammogram(path, apply_window=True)
    except RejectedError as rejected:
        return rejected.code
    return None


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_get_their_code(real_data: Path, name: str) -> None:
    """Each file that was broken on purpose is refused for what is wrong with it, or accepted if nothing is."""
    assert outcome(real_data / "mg_dicom" / "malformed" / name) == MALFORMED[name]


def test_header(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """Patient, view and side come from the header, without padding and in capitals."""
    path = write_dicom(breast, PatientID=" P1 ", ViewPosition="mlo", ImageLaterality=None, Laterality="L")
    assert read_header(path) == Header(patient_id="P1", view="MLO", laterality="L")
    assert read_header(write_dicom(breast)) == Header(patient_id=None, view=None, laterality=None)


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"Modality": None}, None),
        ({"Modality": "RG"}, None),
        ({"Modality": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, None),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, None),
        ({"Modality": "CR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "ViewPosition": "CC"}, None),
        (
            {"Modality": "CR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "BodyPartExamined": "CHEST"},
            Code.NOT_MAMMOGRAPHY,
        ),
        ({"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67"}, Code.NOT_MAMMOGRAPHY),
        ({"Modality": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}, Code.NOT_MAMMOGRAPHY),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, Code.NOT_MAMMOGRAPHY),
        ({"PresentationIntentType": "FOR PROCESSING"}, Code.FOR_PROCESSING),
        ({"NumberOfFrames": 3}, Code.MULTIFRAME),
        ({"Rows": 65535, "Columns": 65535}, Code.TOO_LARGE),
        ({"Rows": 0}, Code.NOT_IMAGE),
        ({"WindowCenter": 100, "WindowWidth": 0}, Code.UNDECODABLE),
        ({"WindowCenter": "", "WindowWidth": ""}, None),
        ({"BitsAllocated": 32}, Code.UNDECODABLE),
    ],
)
def test_files_are_judged_by_content(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], tags: dict[str, Any], code: Code | None
) -> None:
    """No single tag decides whether a file is a mammogram that can be used."""
    assert outcome(write_dicom(breast, **tags)) == code


def test_window_equals_pydicoms(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """The first of several windows is applied after the rescale slope, as pydicom applies it."""
    path = write_dicom(
        breast, WindowCenter=[1500, 9], WindowWidth=[900, 9], VOILUTFunction="SIGMOID",
        RescaleSlope=2, RescaleIntercept=-500,
    )  # fmt: skip
    mammogram = read_mammogram(path, apply_window=True)
    expected = apply_voi_lut(breast * 2.0 - 500, dcmread(path))
    np.testing.assert_allclose(mammogram.brightness[mammogram.stored], expected, rtol=1e-6)
    plain = read_mammogram(path, apply_window=False)
    np.testing.assert_allclose(plain.brightness[plain.stored], breast * 2.0 - 500)


def test_voi_lut_of_8_bits_with_many_entries(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """A VOI LUT from 12 bits to 8 is looked up beyond its 256th entry."""
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 8]
    item.LUTData = (np.arange(4096) // 16).astype("<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    mammogram = read_mammogram(write_dicom(breast, VOILUTSequence=Sequence([item])), apply_window=True)
    np.testing.assert_array_equal(mammogram.brightness[mammogram.stored], breast // 16)


def test_monochrome1_is_inverted_after_the_window(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """In MONOCHROME1 the windowed values change their sign, so that dense tissue is bright in both."""
    window = {"WindowCenter": 1500, "WindowWidth": 900}
    there = read_mammogram(write_dicom(breast, **window), apply_window=True)
    inverse = read_mammogram(write_dicom(breast, PhotometricInterpretation="MONOCHROME1", **window), apply_window=True)
    np.testing.assert_array_equal(there.brightness, -inverse.brightness)


def test_signed_pixels_and_padding_range(write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> None:
    """Negative stored values keep their meaning, and padding is compared with stored values, from value to limit."""
    signed = breast.astype(np.int16) - 2000
    path = write_dicom(
        signed, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990, RescaleSlope=3, RescaleIntercept=1
    )
    mammogram = read_mammogram(path, apply_window=True)
    np.testing.assert_array_equal(mammogram.brightness[mammogram.stored], signed * 3.0 + 1)
    np.testing.assert_array_equal(mammogram.padding[mammogram.stored], signed <= -1990)


def test_no_file_meta_header(write_dicom: WriteDicom, breast: NDArray[np.uint16], tmp_path: Path) -> None:
    """A file that begins with its first tag, as old archives write them, is read."""
    path = write_dicom(breast)
    dataset = dcmread(path)
    del dataset.file_meta
    old = tmp_path / "old"
    dataset.save_as(old, implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(read_mammogram(old, apply_window=True).stored, breast)


def test_reading_is_quiet(
    write_dicom: WriteDicom, breast: NDArray[np.uint16], caplog: pytest.LogCaptureFixture
) -> None:
    """What pydicom has against a header, which may quote it, reaches neither warnings nor logs."""
    path = write_dicom(breast, PatientID="x" * 100, ViewPosition="mlo?!", Modality=None)
    caplog.clear()
    assert read_header(path).view == "MLO?!"
    assert outcome(path) is None
    assert not caplog.records
