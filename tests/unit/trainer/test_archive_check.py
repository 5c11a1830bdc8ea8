from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.archive_check import check_archive
from trainer.config import CheckConfig
from trainer.data.phantom import make_phantom
from trainer.errors import InputError


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic archive; not to be changed."""
    folder = tmp_path_factory.mktemp("phantom") / "archive"
    make_phantom(folder, patients=16, side=64)
    return folder


@pytest.fixture
def archive(phantom: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(phantom, tmp_path / "archive"))


def config(archive: Path, **fields: Any) -> CheckConfig:
    """How to look at *archive*."""
    return CheckConfig(csv=archive / "classificacao.csv", dicom_root=archive / "archive", img_size=64, **fields)


def report_codes(path: Path) -> dict[str, str]:
    """The code of each path in a report."""
    with path.open(newline="") as file:
        return {row["path"]: row["code"] for row in csv.DictReader(file)}


def test_what_is_found(archive: Path, tmp_path: Path) -> None:
    """Images and patients by class, views and sides, and every path that is not used with its code."""
    (archive / "archive" / "0000001" / "notes.txt").write_text("hello")
    (archive / "archive" / "unlabelled").mkdir()
    (archive / "archive" / "unlabelled" / "x").touch()
    found = check_archive(config(archive), tmp_path / "out")
    assert found.error is None
    report = found.report
    assert (report.usable, report.problem, report.format) == (True, None, "archive")
    assert (report.images, report.patients) == (64, 16)
    assert sum(count.images for count in report.classes.values()) == 64
    assert list(report.classes) == ["1", "2", "3", "4"]
    assert report.views == {"CC": 32, "MLO": 32}
    assert report.lateralities == {"L": 32, "R": 32}
    assert report.rejected == {"NOT_IMAGE": 1, "NO_LABEL": 1}
    assert report.broken == 1
    assert report.report == tmp_path / "out" / "data_report.csv"
    assert report_codes(report.report) == {"0000001/notes.txt": "NOT_IMAGE", "unlabelled/x": "NO_LABEL"}


def test_too_many_broken_files_are_all_reported(archive: Path, tmp_path: Path) -> None:
    """An archive that cannot be used is looked at as a whole before that is said: also what only decoding finds."""
    for path in (archive / "archive" / "0000001").iterdir():
        path.write_text("<html>")
    path = archive / "archive" / "0000002" / "L_CC.dcm"
    path.write_bytes(path.read_bytes()[:-3000])
    found = check_archive(config(archive), tmp_path / "out")
    assert "5 of 64 images are broken (NOT_IMAGE 4, TRUNCATED 1): more than max_rejected 0.05" in str(found.error)
    assert not found.report.usable
    assert found.report.problem == str(found.error)
    assert found.report.images == 59
    assert len(report_codes(found.report.report)) == 5
    assert check_archive(config(archive, max_rejected=0.1), tmp_path / "out").error is None


def test_an_archive_without_one_of_its_classes(archive: Path, tmp_path: Path) -> None:
    """A class that is asked for and has no image is a problem, and the report is written."""
    text = (archive / "classificacao.csv").read_text()
    (archive / "classificacao.csv").write_text(text.replace(",4,", ",3,"))
    assert check_archive(config(archive), tmp_path / "out").error is None
    found = check_archive(config(archive, classes="multiclass"), tmp_path / "out")
    assert "class '4' has 0 labels and no usable image" in str(found.error)
    assert found.report.report.is_file()
    assert found.report.images == 64
    binary = check_archive(config(archive, classes="binary"), tmp_path / "out")
    assert binary.error is None
    assert list(binary.report.classes) == ["1-2", "3-4"]


def test_too_many_folds(phantom: Path, tmp_path: Path) -> None:
    """Whether folds can be made is found out before a study is made."""
    assert check_archive(config(phantom, cv_folds=2), tmp_path).error is None
    assert "absent from fold" in str(check_archive(config(phantom, cv_folds=10), tmp_path).error)


@pytest.mark.parametrize("fields", [{}, {"cache_mode": "none"}, {"pseudonyms": True}])
def test_preview(phantom: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    """The contact sheet is a picture with something on it, wherever the images are kept and whatever they are called."""
    path = tmp_path / "new" / "sheet.png"
    found = check_archive(config(phantom, **fields), tmp_path / "out", preview=path)
    assert found.report.preview == path
    picture = np.asarray(Image.open(path).convert("L"))
    assert min(picture.shape) > 300
    assert ((picture > 20) & (picture < 235)).mean() > 0.05


def test_a_published_split_that_leaks(phantom: Path, tmp_path: Path) -> None:
    """What a run would refuse is found by looking."""
    paths = sorted(path.relative_to(phantom / "archive").as_posix() for path in phantom.rglob("*.dcm"))
    rows = "".join(
        f"{path},{number // 4 % 2},{'train' if number % 3 else 'test'}\n" for number, path in enumerate(paths)
    )
    (tmp_path / "table.csv").write_text("image,label,split\n" + rows)
    places = {"csv": tmp_path / "table.csv", "dicom_root": phantom / "archive", "img_size": 32}
    assert check_archive(CheckConfig(**places), tmp_path / "out").error is None
    found = check_archive(CheckConfig(**places, published_split=True), tmp_path / "out")
    assert "16 patients both among its test images and elsewhere" in str(found.error).replace("validation", "test")
    assert found.report.splits == {"test": 22, "train": 42}


def test_a_report_that_cannot_be_written(phantom: Path, tmp_path: Path) -> None:
    """What was found is told all the same."""
    (tmp_path / "file").touch()
    found = check_archive(config(phantom, cache_mode="none"), tmp_path / "file" / "out")
    assert found.report.images == 64
    assert "cannot be written" in str(found.error)


def test_a_preview_that_cannot_be_written(phantom: Path, tmp_path: Path) -> None:
    """It is said in one line."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="the picture cannot be written"):
        check_archive(config(phantom), tmp_path / "out", preview=tmp_path / "file" / "sheet.png")
