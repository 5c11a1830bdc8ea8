from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from trainer.config import PreprocessingConfig
from trainer.data import phantom as archive
from trainer.data.cache import open_dataset
from trainer.data.decoder import decode
from trainer.data.division import make_folds
from trainer.data.phantom import draw_sheet, make_phantom
from trainer.data.phantom_anatomy import Anatomy, draw_anatomy, draw_breast, draw_marker
from trainer.errors import InputError

SIDES_AND_VIEWS = [("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below *folder*."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def counts(folder: Path) -> Counter[str]:
    """How many patients in *folder* have each grade."""
    with (folder / "classificacao.csv").open() as file:
        return Counter(row["Classification"] for row in csv.DictReader(file))


def anatomy(seed: int, dense_area: float = 0.4) -> Anatomy:
    """A patient's anatomy."""
    return draw_anatomy(np.random.default_rng(seed), dense_area)


def similarity(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The correlation of two images."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_seeded(tmp_path: Path) -> None:
    """The same seed gives the same bytes; another one other images."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_phantom(tmp_path / name, patients=4, seed=seed, side=96)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")


def test_layout_and_variety(phantom: Path) -> None:
    """The archive layout, accession numbers with zeros, and every encoding, polarity, bit depth and vendor."""
    with (phantom / "classificacao.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["AccessionNumber"] for row in rows} == {path.name for path in (phantom / "archive").iterdir()}
    assert rows[0]["AccessionNumber"] == "0000001"
    headers = [dcmread(path, stop_before_pixels=True) for path in phantom.rglob("*.dcm")]
    assert len(headers) == 64
    assert len({header.file_meta.TransferSyntaxUID for header in headers}) == 4
    assert {header.PhotometricInterpretation for header in headers} == {"MONOCHROME1", "MONOCHROME2"}
    assert {header.BitsStored for header in headers} == {10, 12, 14}
    assert len({header.Manufacturer for header in headers}) == 5
    assert Counter((header.ImageLaterality, header.ViewPosition) for header in headers) == Counter(SIDES_AND_VIEWS * 16)
    assert len({header.PatientID for header in headers}) == 16
    assert len({header.SOPInstanceUID for header in headers}) == 64
    assert {len(header.get("WindowCenterWidthExplanation", ())) for header in headers} > {0, 3}
    assert {header.get("VOILUTFunction") for header in headers} == {None, "LINEAR", "SIGMOID"}
    for keyword in ("RescaleSlope", "PixelPaddingValue", "WindowCenter"):
        assert len({keyword in header for header in headers}) == 2


@pytest.mark.parametrize("vendor", archive._VENDORS, ids=lambda vendor: vendor.model)
def test_what_is_drawn_can_be_read(vendor: archive._Vendor, tmp_path: Path) -> None:
    """Every encoding gives back the stored values that were drawn, and every vendor's file the same picture."""
    reference = archive._Patient(1, 2, anatomy(1), 1.0, archive._VENDORS[0])
    patient = archive._Patient(1, 2, anatomy(1), 1.0, vendor)
    pictures = []
    for number, encoding in enumerate(archive._ENCODINGS):
        dataset = archive._draw_dataset(np.random.default_rng(3), patient, "R", "MLO", 96, 0)
        drawn, path = dataset.pixel_array, tmp_path / f"{number}.dcm"
        archive._save(dataset, path, encoding)
        np.testing.assert_array_equal(dcmread(path).pixel_array, drawn)
        assert drawn.max() < 2**vendor.bits
        pictures.append(decode(path, PreprocessingConfig(img_size=64))[1])
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
    dataset = archive._draw_dataset(np.random.default_rng(3), reference, "R", "MLO", 96, 0)
    archive._save(dataset, tmp_path / "reference.dcm", archive._ENCODINGS[0])
    expected = decode(tmp_path / "reference.dcm", PreprocessingConfig(img_size=64))[1]
    assert expected is not None
    assert similarity(pictures[0], expected) > 0.98


@pytest.mark.parametrize(("patients", "fewest"), [(60, 9), (24, 3)])
def test_every_grade_has_patients(tmp_path: Path, patients: int, fewest: int) -> None:
    """Each grade has enough patients for cross-validation, and the grades are unequal."""
    by_grade = archive._count_grades(patients, None)
    assert by_grade.sum() == patients
    assert by_grade.min() >= fewest
    assert by_grade.max() >= 2 * by_grade.min()


@pytest.mark.parametrize("imbalance", [1, 2.5, 10, 20])
def test_imbalance_is_the_largest_grade_over_the_smallest(imbalance: float) -> None:
    """As asked, within the rounding to whole patients; every grade has one, also in the smallest archives."""
    largest, smallest = archive._count_grades(4000, imbalance).max(), archive._count_grades(4000, imbalance).min()
    assert largest / smallest == pytest.approx(imbalance, rel=0.02)
    for patients in range(4, 60):
        by_grade = archive._count_grades(patients, imbalance)
        assert (by_grade.sum(), by_grade.min() >= 1) == (patients, True)


def test_imbalance_in_the_label_file(tmp_path: Path) -> None:
    """Grades 2 and 3 are frequent, 1 and 4 rare."""
    make_phantom(tmp_path / "archive", patients=16, side=64, imbalance=20)
    assert [grade for grade, _ in counts(tmp_path / "archive").most_common(2)] == ["2", "3"]
    assert min(counts(tmp_path / "archive").values()) == 1


def test_density_can_be_seen_and_not_perfectly(phantom: Path, tmp_path: Path) -> None:
    """Denser grades are brighter on average after preprocessing, while neighbours overlap."""
    data = open_dataset(phantom / "classificacao.csv", phantom / "archive", PreprocessingConfig(img_size=64), tmp_path)
    make_folds(data, 2, 0)
    assert not data.rejections
    brightness = [float((image > 150).sum() / (image > 5).sum()) for image in data.images]
    by_class = [[value for value, label in zip(brightness, data.labels, strict=True) if label == c] for c in range(4)]
    means = [sum(values) / len(values) for values in by_class]
    assert means == sorted(means)
    assert means[3] > means[0] + 0.15
    assert max(by_class[1]) > min(by_class[2])


def test_dense_area_is_that_of_the_patient() -> None:
    """About the share of the breast that was asked for is dense, whatever the view and side."""
    random = np.random.default_rng(0)
    for area in (0.1, 0.3, 0.6):
        for view in ("CC", "MLO"):
            drawings = [draw_breast(random, anatomy(seed, area), view, 96) for seed in range(12)]
            share = np.mean([(drawing.dense[drawing.depth > 0] > 0.5).mean() for drawing in drawings])
            expected = area if view == "CC" else 0.8 * area  # a fifth of the image is muscle
            assert share == pytest.approx(expected, abs=0.04)


def test_a_breast_has_a_chest_wall_an_edge_and_air() -> None:
    """It lies at the left edge, fades at the skin, and is dark outside; in MLO its upper corner is bright muscle."""
    random = np.random.default_rng(0)
    for seed in range(12):
        for view in ("CC", "MLO"):
            drawing = draw_breast(random, anatomy(seed), view, 128)
            inside = drawing.depth > 0
            assert 0.15 < inside.mean() < 0.75
            assert inside[64, 0]
            assert not inside[:, -1].any()
            assert drawing.values[drawing.depth < -0.02].max() == 0
            assert drawing.values[inside & (drawing.depth < 0.02)].mean() < 0.7 * drawing.values[inside].mean()
            assert (drawing.values[:8, :4].mean() > 0.4) == (view == "MLO")


def test_sides_are_similar_and_no_mirror_images() -> None:
    """Dense tissue lies more alike in the two breasts of a patient than in those of two patients."""
    random = np.random.default_rng(0)
    patients = [anatomy(seed) for seed in range(24)]
    left, right = ([draw_breast(random, patient, "CC", 64).dense for patient in patients] for _ in range(2))
    same = [similarity(one, other) for one, other in zip(left, right, strict=True)]
    others = [similarity(one, other) for one, other in zip(left, right[1:] + right[:1], strict=True)]
    assert np.mean(same) > np.mean(others) + 0.1
    assert max(same) < 0.95


@pytest.mark.parametrize("side", [64, 512])
def test_markers_are_away_from_the_chest_wall(side: int) -> None:
    """Side and view stand in the air, in the upper corner that the breast does not reach."""
    random = np.random.default_rng(0)
    for laterality, view in SIDES_AND_VIEWS:
        marker = draw_marker((side, side * 13 // 16), laterality, view)
        rows, columns = np.nonzero(marker if laterality == "L" else marker[:, ::-1])
        assert rows.size > 5
        assert rows.max() < side / 8
        assert columns.min() > marker.shape[1] / 2
        for seed in range(4):
            assert draw_breast(random, anatomy(seed), view, side).depth[rows, columns].max() < 0


def test_a_sheet_shows_every_grade() -> None:
    """Four rows of four images, denser from row to row."""
    sheet = draw_sheet(side=64)
    assert sheet.shape == (4 * 64, 4 * 52)
    bright = [float((row[:, :104] > 140).mean()) for row in np.split(sheet, 4)]
    assert bright[0] < bright[-1] / 2


def test_what_is_refused(tmp_path: Path) -> None:
    """A folder with files in it is not written over; images too small for an encoder and odd imbalances are not made."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        make_phantom(tmp_path, patients=4)
    with pytest.raises(InputError, match="side 63"):
        make_phantom(tmp_path / "new", patients=4, side=63)
    for imbalance in (0.5, 21):
        with pytest.raises(InputError, match=f"imbalance {imbalance}"):
            make_phantom(tmp_path / "new", patients=4, imbalance=imbalance)
    assert not (tmp_path / "new").exists()
