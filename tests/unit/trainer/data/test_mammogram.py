from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.data.image_file import read_mammogram
from trainer.data.mammogram import Header, Mammogram, RejectedError, said_by
from trainer.data.records import Code


def mammogram(stored: NDArray[np.uint8] | NDArray[np.uint16]) -> Mammogram:
    """Stored values that are as bright as they are large."""
    table = np.arange(2 ** (8 * stored.dtype.itemsize), dtype=np.float32)
    return Mammogram(stored, table, np.zeros(len(table), dtype=bool))


def test_one_image_has_one_fingerprint(real_data: Path) -> None:
    """All lossless 12-bit files of one image share their fingerprint, whatever their encoding, window and padding."""
    fingerprints = {
        path.stem: read_mammogram(path, apply_window=True).fingerprint()
        for path in (real_data / "mg_dicom" / "derived").glob("*.dcm")
    }
    inverse = {fingerprints.pop("mono1_inverse"), fingerprints.pop("mg_for_processing")}
    eight_bit = fingerprints.pop("eight_bit")
    assert len(fingerprints) == 8
    assert len(set(fingerprints.values())) == 1
    assert len({*fingerprints.values(), *inverse, eight_bit}) == 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (513, 511), (1500, 700)])
def test_fingerprints_differ(shape: tuple[int, int]) -> None:
    """One changed pixel, another shape and a mirrored image have other fingerprints; equal pixels have the same."""
    stored = np.random.default_rng(0).integers(0, 4096, shape).astype(np.uint16)
    own = mammogram(stored).fingerprint()
    assert own == mammogram(stored.copy()).fingerprint()
    for place in ((0, 0), (-1, -1), (shape[0] // 2, shape[1] // 3)):
        changed = stored.copy()
        changed[place] += 1
        assert mammogram(changed).fingerprint() != own
    if shape[0] != shape[1]:
        assert mammogram(stored.T.copy()).fingerprint() != own
    if shape[1] > 1:
        assert mammogram(stored[:, ::-1].copy()).fingerprint() != own


def test_fingerprint_of_eight_bits() -> None:
    """The same values in 8 and in 16 bits are the same pixels."""
    stored = np.arange(200, dtype=np.uint8).reshape(10, 20)
    assert mammogram(stored).fingerprint() == mammogram(stored.astype(np.uint16)).fingerprint()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("could not convert string to float: 'MUSTER^ANNA'", "could not convert string to float"),
        ("doesn't fit 'MUSTER'", "doesn't fit"),
        ("libjpeg error code '-1038' returned: misplaced", "libjpeg error code -1038 returned: misplaced"),
        ("no number: b'MUSTER'", "no number"),
        ("Anna's 'MUSTER'", "Anna"),
        ('expected "MUSTER" or so', "expected"),
        ("'MUSTER'", "ValueError"),
        ("", "ValueError"),
        ("no data", "no data"),
    ],
)
def test_what_an_error_quotes_is_left_out(said: str, reason: str) -> None:
    """Nothing behind a quotation mark is repeated: it may be a patient's name."""
    assert said_by(ValueError(said)) == reason


def test_reasons_are_one_line() -> None:
    """A reason is one line of bounded length, whatever was said."""
    rejected = RejectedError(Code.UNDECODABLE, "two\n lines\tand\r\n more" + "." * 1000)
    assert rejected.reason.startswith("two lines and more...")
    assert len(rejected.reason) <= 200


def test_header_with_patient() -> None:
    """Only the patient is another one."""
    header = Header(pixels=6, patient_id="1", view="CC")
    assert header.with_patient("2") == Header(pixels=6, patient_id="2", view="CC")
