from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from trainer.config import VIEWS
from trainer.data.views import described_by, laterality_of, special_view_of, view_of


def header(**tags: Any) -> Dataset:
    """A header of these tags."""
    dataset = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the wrong values that a test wants
        for name, value in tags.items():
            setattr(dataset, name, value)
    return dataset


def coded(value: str, modifier: str | None = None) -> Dataset:
    """A coded entry, with a modifier inside of it if there is one."""
    item = header(CodeValue=value)
    if modifier is not None:
        item.ViewModifierCodeSequence = Sequence([coded(modifier)])
    return item


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_by_its_name(view: str) -> None:
    """Each view is known as DICOM writes it, and in lower case."""
    assert view_of(header(ViewPosition=view)) == view
    assert view_of(header(ViewPosition=f" {view.lower()} ")) == view


@pytest.mark.parametrize(
    ("written", "view"),
    [
        ("RMLO", "MLO"), ("LMLO", "MLO"), ("L MLO", "MLO"), ("R-CC", "CC"), ("RCC", "CC"), ("LCC", "CC"), ("MLO ID", "MLO"),
        ("CC_ID", "CC"), ("LML", "ML"), ("RML", "ML"), ("LM", "LM"), ("LLM", "LM"), ("LMO", "LMO"), ("LLMO", "LMO"),
        ("LXCCL", "XCCL"), ("XCCL", "XCCL"), ("cc spot", "CC"), (["CC", "MAG"], "CC"), ("AP", None), ("PA", None),
        ("MCC", "CC"), ("MMLO", "MLO"), ("RMCC", "CC"), ("lmmlo", "MLO"), ("MLO", "MLO"), ("MML", None),
        ("LAT", None), ("LL", None), ("", None), ("?!", None), ("MLOX", None),
    ],
)  # fmt: skip
def test_views_as_vendors_write_them(written: str | list[str], view: str | None) -> None:
    """A side before the view and words behind it do not hide it; a lateral chest is no axillary tail."""
    assert view_of(header(ViewPosition=written)) == view


@pytest.mark.parametrize(
    ("code", "view"),
    [
        ("R-10242", "CC"), ("399162004", "CC"), ("R-10226", "MLO"), ("399368009", "MLO"), ("R-10224", "ML"),
        ("R-10228", "LM"), ("R-10230", "LMO"), ("R-10244", "FB"), ("R-102D0", "SIO"), ("R-40AAA", "ISO"), ("Y-X1770", "XCC"),
        ("Y-X1771", "XCCL"), ("Y-X1772", "XCCM"), ("399260004 ", "ML"), ("R-00000", None), ("", None),
    ],
)  # fmt: skip
def test_views_by_their_code(code: str, view: str | None) -> None:
    """Where there is no name the code tells, in SRT and in SNOMED CT; a name comes first."""
    assert view_of(header(ViewCodeSequence=Sequence([coded(code)]))) == view
    assert view_of(header(ViewPosition="", ViewCodeSequence=Sequence([coded(code)]))) == view
    assert view_of(header(ViewPosition="AT", ViewCodeSequence=Sequence([coded(code)]))) == "AT"
    assert view_of(header(ViewCodeSequence=Sequence([]))) is None


@pytest.mark.parametrize(
    ("tags", "special"),
    [
        ({}, None),
        ({"ViewCodeSequence": Sequence([coded("R-10242", "R-102D6")])}, "MAG"),
        ({"ViewCodeSequence": Sequence([coded("399162004", "399055006")])}, "SPOT"),
        ({"ViewCodeSequence": Sequence([coded("R-10242", "R-102D5")])}, None),  # an implant that is pushed aside
        ({"ViewModifierCodeSequence": Sequence([coded("R-102D7")])}, "SPOT"),
        ({"ViewPosition": "CC MAG"}, "MAG"),
        ({"ViewPosition": "SPOT CC"}, "SPOT"),
        ({"PaddleDescription": "10CM SPOT PADDLE"}, "SPOT"),
        ({"PaddleDescription": "24x30 SCREENING"}, None),
        ({"SeriesDescription": "R_CC_Magnification"}, "MAG"),
        ({"SeriesDescription": "Spotless image"}, None),
        ({"ProtocolName": "L ML MICROFOCUS"}, "MAG"),
        ({"SeriesDescription": "R CC MagView"}, "MAG"),
        ({"ProtocolName": "MAGVIEWS"}, "MAG"),
        ({"ViewPosition": "MCC"}, "MAG"),
        ({"ViewPosition": "MMLO"}, "MAG"),
        ({"ViewPosition": "LMMLO"}, "MAG"),
        ({"ViewPosition": "LMLO"}, None),
        ({"SeriesDescription": "MCC"}, None),
        ({"EstimatedRadiographicMagnificationFactor": "1.8"}, "MAG"),
        ({"EstimatedRadiographicMagnificationFactor": "1.07"}, None),
        ({"EstimatedRadiographicMagnificationFactor": ""}, None),
    ],
)
def test_pictures_of_a_part_of_the_breast(tags: dict[str, Any], special: str | None) -> None:
    """Each of the places where vendors say that it is a spot or magnified view is looked at."""
    assert special_view_of(header(**tags)) == special
    assert special_view_of(header(**{"ViewPosition": "MLO"} | tags)) == special


@pytest.mark.parametrize(
    ("tags", "side"),
    [
        ({"ImageLaterality": "L"}, "L"),
        ({"ImageLaterality": "R "}, "R"),
        ({"ImageLaterality": "left"}, "L"),
        ({"Laterality": "R"}, "R"),
        ({"ImageLaterality": "", "Laterality": "L"}, "L"),
        ({"ImageLaterality": "L", "Laterality": "R"}, "L"),
        ({"ImageLaterality": "B"}, None),
        ({}, None),
    ],
)
def test_laterality(tags: dict[str, str], side: str | None) -> None:
    """The image's own side comes before the series'; both breasts are no side."""
    assert laterality_of(header(**tags)) == side


def test_described_by() -> None:
    """Texts become words in capitals, of several values too."""
    dataset = header(SeriesDescription="Dose report_1", ImageType=["DERIVED", "SCREEN SAVE"])
    words = described_by(dataset, ("SeriesDescription", "ImageType", "ProtocolName"))
    assert words == {"DOSE", "REPORT", "1", "DERIVED", "SCREEN", "SAVE"}


def test_views_of_real_files(real_data: Path) -> None:
    """The scanned films' headers say view and side as their names do."""
    from pydicom import dcmread  # noqa: PLC0415  this test alone reads files

    for path in (real_data / "mg_dicom" / "archive_cbis").rglob("*.dcm"):
        dataset = dcmread(path, stop_before_pixels=True)
        assert f"{laterality_of(dataset)}_{view_of(dataset)}" == path.stem
        assert special_view_of(dataset) is None
