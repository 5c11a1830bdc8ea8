from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

from trainer.config import PreprocessingConfig, SelectionConfig
from trainer.data.cache import open_dataset
from trainer.data.naming import choose_naming
from trainer.data.records import Code, Dataset
from trainer.errors import DataError, InputError

WriteDicom = Callable[..., Path]
CONFIG = PreprocessingConfig(img_size=32)


@pytest.fixture
def write_archive(tmp_path: Path, write_dicom: WriteDicom, breast: NDArray[np.uint16]) -> Callable[..., Path]:
    """A function that writes images, by path and their tags, each of other pixels, and a label file, and returns the folder."""

    def write(images: dict[str, dict[str, Any]], table: str) -> Path:
        folder = tmp_path / "odd"
        for number, (path, tags) in enumerate(images.items()):
            write_dicom(breast + (breast > 0) * np.uint16(number), folder / "images" / path, **tags)
        (folder / "labels.csv").write_text(table)
        return folder

    return write


def opened(folder: Path, **selection: Any) -> Dataset:
    """The data set of what was written."""
    selected = SelectionConfig.model_validate({"max_rejected": 1, **selection})
    return open_dataset(
        folder / "labels.csv", folder / "images", CONFIG, folder, selection=selected, cache_mode="memory"
    )


def used(folder: Path, **selection: Any) -> list[str]:
    """The names of the images that are used."""
    return [record.path for record in opened(folder, **selection).records]


VIEWS = {
    "1/a": {"ViewPosition": "CC"},
    "1/b": {"ViewPosition": "MLO"},
    "2/c": {"ViewPosition": "CC", "SeriesDescription": "R SPOT CC"},
    "2/d": {"ViewPosition": "ML", "EstimatedRadiographicMagnificationFactor": "1.8"},
    "2/e": {},
}


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ("standard", "abe"),
        ("all", "abcde"),
        ("CC,MLO", "ab"),
        ("mlo", "b"),
        ("SPOT,MAG", "cd"),
        (["CC", "MAG"], "ad"),
    ],
)
def test_views(write_archive: Callable[..., Path], views: Any, expected: str) -> None:
    """Spot and magnified views are left out unless asked for; a list of views leaves out all others and unknown ones."""
    folder = write_archive(VIEWS, "AccessionNumber,Classification\n1,1\n2,1\n")
    data = opened(folder, views=views)
    assert [record.path[-1] for record in data.records] == list(expected)
    assert {each.code for each in data.rejections} <= {Code.EXCLUDED_VIEW}
    assert len(data.rejections) == 5 - len(expected)


@pytest.mark.parametrize("views", ["", "CC,,MLO", "CD", [], 7])
def test_views_that_do_not_exist(views: Any) -> None:
    """A name that is no view is refused."""
    with pytest.raises(ValueError, match="views"):
        SelectionConfig(views=views)


def test_raw_images(write_archive: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    """FOR PROCESSING is left out; asked for, it is used, and a mixture is said loudly."""
    folder = write_archive(
        {"1/a": {}, "2/b": {"PresentationIntentType": "FOR PROCESSING"}}, "AccessionNumber,Classification\n1,1\n2,1\n"
    )
    assert used(folder) == ["1/a"]
    assert opened(folder).rejected() == {"FOR_PROCESSING": 1}
    assert not caplog.records
    assert used(folder, include_for_processing=True) == ["1/a", "2/b"]
    assert "1 images are FOR PROCESSING and 1 are not" in caplog.text


def test_what_the_label_file_says_of_an_image_counts_first(write_archive: Callable[..., Path]) -> None:
    """View, side and patient of a plain label file are used; where it says nothing, the header's are."""
    folder = write_archive(
        {
            "x/a.dcm": {"ViewPosition": "CC", "ImageLaterality": "L", "PatientID": "P1"},
            "x/b.dcm": {"ViewPosition": "CC", "ImageLaterality": "L", "PatientID": "P2"},
        },
        "image,label,patient,view,laterality\nx/a.dcm,A,007,mlo,right\nx/b.dcm,B,,,\n",
    )
    one, other = opened(folder).records
    assert (one.patient, one.view, one.laterality) == ("007", "MLO", "R")
    assert (other.patient, other.view, other.laterality) == ("P2", "CC", "L")


def test_pictures_without_a_header(
    tmp_path: Path, breast: NDArray[np.uint16], caplog: pytest.LogCaptureFixture
) -> None:
    """PNG and JPEG of 8 and 16 bits are used, in the archive's layout or named, and unknown patients are said loudly."""
    root = tmp_path / "images"
    for accession in ("01", "02"):
        (root / accession).mkdir(parents=True)
    grey = (breast // 16).astype(np.uint8)
    Image.fromarray(breast * 16).save(root / "01" / "a.png")
    Image.fromarray(grey).save(root / "01" / "b.png")
    Image.fromarray(grey[::-1].copy()).convert("RGB").save(root / "02" / "c.jpg", quality=95)
    (tmp_path / "labels.csv").write_text("AccessionNumber,Classification\n01,1\n02,2\n")
    data = opened(tmp_path)
    assert [record.path for record in data.records] == ["01/a.png", "01/b.png", "02/c.jpg"]
    assert data.patients == ["01", "01", "02"]
    first, second = (data.images[place].astype(int) for place in (0, 1))
    assert np.abs(first - second).mean() < 2
    assert first.std() > 20
    assert not caplog.records
    (tmp_path / "labels.csv").write_text("image,label\n01/a.png,1\n02/c.jpg,2\n")
    assert used(tmp_path) == ["01/a.png", "02/c.jpg"]
    assert "names the patient of 2 images" in caplog.text


def test_paths_of_a_label_file_stay_below_the_root(write_archive: Callable[..., Path], tmp_path: Path) -> None:
    """A path that leads out of the root is refused, though there is an image."""
    folder = write_archive({"1/a.dcm": {}, "../outside.dcm": {}}, "")
    absolute = folder / "outside.dcm"
    assert absolute.exists()
    (folder / "labels.csv").write_text(
        f"image,label\n1/a.dcm,1\n../outside.dcm,1\n{absolute},1\n1/../../outside.dcm,1\n"
    )
    data = opened(folder)
    assert [record.path for record in data.records] == ["1/a.dcm"]
    assert data.rejected() == {"OUTSIDE_ROOT": 3}


def test_duplicates_in_other_encodings(phantom: Path, tmp_path: Path) -> None:
    """The same pixels under another accession number are found however they are encoded, in every mode, with no row left."""
    archive = Path(shutil.copytree(phantom, tmp_path / "archive"))
    with (archive / "classificacao.csv").open() as file:
        grade_of = {row["AccessionNumber"]: row["Classification"] for row in csv.DictReader(file)}
    first, *others = sorted(grade_of)
    same = next(name for name in others if grade_of[name] == grade_of[first])
    different = next(name for name in others if grade_of[name] != grade_of[first])
    for name, view in ((same, "L_CC"), (different, "R_MLO")):
        copied = dcmread(archive / "archive" / first / f"{view}.dcm")
        copied.decompress()
        copied.PatientID, copied.SOPInstanceUID, copied.AccessionNumber = "SOMEBODY", "1.2.3", name
        copied.save_as(archive / "archive" / name / f"{view}.dcm")
    for mode in ("disk", "memory", "none"):
        data = open_dataset(
            archive / "classificacao.csv", archive / "archive", CONFIG, tmp_path / "cache", cache_mode=mode
        )
        codes = {rejection.path: rejection.code for rejection in data.rejections}
        assert codes == {
            f"{same}/L_CC.dcm": Code.DUPLICATE,
            f"{different}/R_MLO.dcm": Code.CONFLICTING_DUPLICATE,
            f"{first}/R_MLO.dcm": Code.CONFLICTING_DUPLICATE,
        }
        assert data.images.shape == (61, 32, 32)
        patient_of = {record.accession: record.patient for record in data.records}
        assert patient_of[first] == patient_of[same] == patient_of[different]
        if mode == "disk":
            on_disk = data
        everything = data.images if mode != "none" else data.images.read(np.arange(61))
        np.testing.assert_array_equal(everything, on_disk.images)
        assert everything.any(axis=(1, 2)).all()


def test_pseudonyms(phantom: Path, tmp_path: Path) -> None:
    """No identifier of the archive is in any file or record, the pixels are the same, and another key is other data."""
    places = phantom / "classificacao.csv", phantom / "archive", CONFIG
    plain = open_dataset(*places, tmp_path / "plain")
    datasets = [
        open_dataset(*places, tmp_path / out / "cache", naming=choose_naming(tmp_path / out, pseudonyms=True))
        for out in ("out", "out", "other")
    ]
    one, again, other = datasets
    assert one.data_hash == again.data_hash
    assert len({plain.data_hash, one.data_hash, other.data_hash}) == 3
    np.testing.assert_array_equal(one.images, plain.images)
    assert len(set(one.patients)) == len(set(plain.patients)) == 16
    real = {record.patient for record in plain.records} | {record.accession for record in plain.records}
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [name for name in real if name.encode() in content], path
    groups = {(old.patient, new.patient) for old, new in zip(plain.records, one.records, strict=True)}
    assert len(groups) == 16


def test_pseudonyms_without_an_array(phantom: Path, tmp_path: Path) -> None:
    """Images that are decoded at each use are still found under their pseudonyms."""
    naming = choose_naming(tmp_path, pseudonyms=True)
    places = phantom / "classificacao.csv", phantom / "archive", CONFIG, tmp_path / "cache"
    data = open_dataset(*places, naming=naming, cache_mode="none")
    kept = open_dataset(*places, naming=naming)
    assert data.records == kept.records
    np.testing.assert_array_equal(data.images.read(np.arange(9)), kept.images[:9])


def test_a_published_split_needs_a_column(phantom: Path) -> None:
    """Asking for a split that the label file does not have is wrong input."""
    with pytest.raises(InputError, match="no split"):
        open_dataset(
            phantom / "classificacao.csv", phantom / "archive", CONFIG, phantom,
            selection=SelectionConfig(published_split=True), cache_mode="memory",
        )  # fmt: skip


def test_a_published_split_is_kept_where_it_is_asked_for(write_archive: Callable[..., Path], tmp_path: Path) -> None:
    """Each image knows its side, in the cache too; not asked for, the column is not part of the data."""
    folder = write_archive(
        {f"{name}.dcm": {} for name in "abc"}, "image,label,split\na.dcm,1,training\nb.dcm,1,test\nc.dcm,1,val\n"
    )
    selection = SelectionConfig(published_split=True)
    arguments = (folder / "labels.csv", folder / "images", CONFIG, tmp_path / "cache")
    for _ in range(2):
        data = open_dataset(*arguments, selection=selection)
        assert [record.split for record in data.records] == ["train", "test", "validation"]
    plain = open_dataset(*arguments)
    assert {record.split for record in plain.records} == {None}
    assert plain.data_hash != data.data_hash


def test_only_broken_images(write_archive: Callable[..., Path]) -> None:
    """An archive of which nothing is left says why in one line."""
    folder = write_archive({"1/a": {}}, "AccessionNumber,Classification\n1,1\n")
    (folder / "images" / "1" / "a").write_bytes((folder / "images" / "1" / "a").read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"none of 1 images can be used; the first: \d+ bytes of pixels"):
        opened(folder)
