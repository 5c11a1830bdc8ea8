from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from pydicom import dcmread

from trainer.config import PreprocessingConfig
from trainer.data.cache import open_dataset
from trainer.data.division import make_folds
from trainer.data.phantom import make_phantom
from trainer.errors import InputError


def content(folder: Path) -> dict[str, bytes]:
    """Every file below *folder*."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_seeded(tmp_path: Path) -> None:
    """The same seed gives the same bytes; another one other images."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_phantom(tmp_path / name, patients=4, seed=seed, side=96)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")


def test_layout_and_variety(phantom: Path) -> None:
    """The archive layout, accession numbers with zeros, and several encodings in both polarities."""
    with (phantom / "classificacao.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["AccessionNumber"] for row in rows} == {path.name for path in (phantom / "archive").iterdir()}
    assert rows[0]["AccessionNumber"] == "0000001"
    headers = [dcmread(path, stop_before_pixels=True) for path in phantom.rglob("*.dcm")]
    assert len(headers) == 64
    assert len({header.file_meta.TransferSyntaxUID for header in headers}) == 3
    assert {header.PhotometricInterpretation for header in headers} == {"MONOCHROME1", "MONOCHROME2"}
    assert len({header.PatientID for header in headers}) == 16
    assert len({header.SOPInstanceUID for header in headers}) == 64


@pytest.mark.parametrize(("patients", "fewest"), [(60, 9), (24, 3)])
def test_every_grade_has_patients(tmp_path: Path, patients: int, fewest: int) -> None:
    """Each grade has enough patients for cross-validation, and the grades are unequal."""
    make_phantom(tmp_path / "archive", patients=patients, side=64)
    with (tmp_path / "archive" / "classificacao.csv").open() as file:
        counts = Counter(row["Classification"] for row in csv.DictReader(file))
    assert sorted(counts) == ["1", "2", "3", "4"]
    assert min(counts.values()) >= fewest
    assert max(counts.values()) >= 2 * min(counts.values())


def test_density_can_be_seen_and_not_perfectly(phantom: Path, tmp_path: Path) -> None:
    """Denser grades are brighter on average after preprocessing, while neighbours overlap."""
    data = open_dataset(phantom / "classificacao.csv", phantom / "archive", PreprocessingConfig(img_size=64), tmp_path)
    make_folds(data, 2, 0)
    brightness = [float((image > 150).sum() / (image > 5).sum()) for image in data.images]
    by_class = [[value for value, label in zip(brightness, data.labels, strict=True) if label == c] for c in range(4)]
    means = [sum(values) / len(values) for values in by_class]
    assert means == sorted(means)
    assert means[3] > means[0] + 0.15
    assert max(by_class[1]) > min(by_class[2])


def test_nothing_is_written_over(tmp_path: Path) -> None:
    """A folder with files in it is refused."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        make_phantom(tmp_path, patients=4)
