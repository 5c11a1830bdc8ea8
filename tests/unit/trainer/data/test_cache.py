from __future__ import annotations

import csv
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.config import PreprocessingConfig, SelectionConfig
from trainer.data.cache import open_dataset
from trainer.data.image_file import read_mammogram
from trainer.data.preprocess import preprocess
from trainer.data.records import Code, Dataset
from trainer.errors import DataError, InputError, OtherDataError

CONFIG = PreprocessingConfig(img_size=64)
SCRIPT = """
import sys
from pathlib import Path
from trainer.config import PreprocessingConfig, SelectionConfig
from trainer.data.cache import open_dataset
archive, cache = Path(sys.argv[1]), Path(sys.argv[2])
data = open_dataset(archive / "classificacao.csv", archive / "archive", PreprocessingConfig(img_size=64), cache,
                    progress=lambda stage, done, total: print(stage, done, total, flush=True))
assert not {"torch", "timm", "torchvision"} & set(sys.modules)
print("hash", data.data_hash)
"""
SLOW = """
import time
from trainer.data import building
building._COMMIT_S = 0.0
_add = building.Building.add
def slow(self, outcome, image):
    _add(self, outcome, image)
    time.sleep(0.02)
building.Building.add = slow
"""
"""So that a kill meets a build in the middle of it, with what was decoded on the disk."""


class Bomb:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.fixture
def archive(phantom: Path, tmp_path: Path) -> Path:
    """A copy of a synthetic archive, to be changed."""
    return Path(shutil.copytree(phantom, tmp_path / "archive"))


def opened(archive: Path, cache: Path, config: PreprocessingConfig = CONFIG, **arguments: object) -> Dataset:
    """The data set of *archive*, decoded into *cache*."""
    return open_dataset(archive / "classificacao.csv", archive / "archive", config, cache, **arguments)


def test_a_data_set(phantom: Path, tmp_path: Path) -> None:
    """Every image is there, as preprocessed alone, with its label, patient, view and side."""
    calls: list[tuple[str, int, int]] = []
    data = opened(phantom, tmp_path, progress=lambda *call: calls.append(call))
    with (phantom / "classificacao.csv").open() as file:
        label_of = {row["AccessionNumber"]: row["Classification"] for row in csv.DictReader(file)}
    assert data.images.shape == (64, 64, 64)
    assert calls == [(stage, done, 64) for stage in ("reading", "decoding") for done in range(1, 65)]
    assert [record.path for record in data.records] == sorted(
        path.relative_to(phantom / "archive").as_posix() for path in phantom.rglob("*.dcm")
    )
    for record, image in zip(data.records, data.images, strict=True):
        assert data.class_names[record.label] == label_of[record.accession]
        assert record.path == f"{record.accession}/{record.laterality}_{record.view}.dcm"
        assert record.patient == f"PHANTOM{int(record.accession):05d}"
        expected = preprocess(read_mammogram(phantom / "archive" / record.path, apply_window=True), CONFIG)
        np.testing.assert_array_equal(image, expected)


def test_second_opening_decodes_nothing(phantom: Path, tmp_path: Path) -> None:
    """The second one gives the same without reading a file, and writing to the array never reaches the cache."""
    first = opened(phantom, tmp_path)
    settle(phantom)
    opened(phantom, tmp_path)
    calls: list[tuple[str, int, int]] = []
    second = opened(phantom, tmp_path, progress=lambda *call: calls.append(call))
    assert not calls
    assert (first.records, first.data_hash, first.class_names) == (second.records, second.data_hash, second.class_names)
    second.images[:] = 0
    np.testing.assert_array_equal(opened(phantom, tmp_path).images, first.images)


def settle(archive: Path) -> None:
    """Wait until files that were just written count as unchanged."""
    newest = max(path.stat().st_ctime for path in archive.rglob("*.dcm"))
    time.sleep(max(0.0, newest + 2.1 - time.time()))


def test_a_file_that_only_looks_unchanged(archive: Path, tmp_path: Path) -> None:
    """Other bytes under the size and the time of the old ones are found: what is known of a file is a shortcut, no more."""
    settle(archive)
    before = opened(archive, tmp_path)
    path = archive / "archive" / "0000001" / "L_CC.dcm"
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    calls: list[tuple[str, int, int]] = []
    after = opened(archive, tmp_path, progress=lambda *call: calls.append(call))
    assert after.data_hash != before.data_hash
    assert [call for call in calls if call[0] == "reading"] == [("reading", 1, 1)]


@pytest.mark.parametrize("stage", ["reading", "decoding"])
@pytest.mark.parametrize("cache_mode", ["disk", "memory", "none"])
def test_a_file_that_changes_meanwhile(archive: Path, tmp_path: Path, stage: str, cache_mode: str) -> None:
    """What was hashed must be what was decoded: an archive that somebody writes to is refused, and nothing of it is kept."""
    last = archive / "archive" / "0000016" / "R_MLO.dcm"
    content = last.read_bytes()

    def change(now: str, done: int, _total: int) -> None:
        if (now, done) == (stage, 5):
            last.write_bytes(content[:-2] + b"xx")

    with pytest.raises(DataError, match=r"0000016/R_MLO\.dcm: changed while the archive was read"):
        opened(archive, tmp_path / "cache", cache_mode=cache_mode, progress=change)
    assert not list(tmp_path.glob("cache/*/images.npy"))
    last.write_bytes(content)
    assert len(opened(archive, tmp_path / "cache").records) == 64


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\xff\x00\n", None])
def test_damaged_knowledge_is_found_out_again(phantom: Path, tmp_path: Path, damage: bytes | None) -> None:
    """What is known of files may be lost or damaged at any time."""
    settle(phantom)
    first = opened(phantom, tmp_path)
    (known,) = tmp_path.glob("known-*.csv")
    known.write_bytes(known.read_bytes()[:-7] if damage is None else damage)
    assert opened(phantom, tmp_path).records == first.records


def test_torch_takes_the_array_without_a_warning(phantom: Path, tmp_path: Path) -> None:
    """The mapped array becomes a tensor without a copy and without a warning about arrays that are read-only."""
    torch = pytest.importorskip("torch")
    data = opened(phantom, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = torch.from_numpy(data.images)
    assert tensor.data_ptr() == data.images.__array_interface__["data"][0]


def test_what_is_in_the_folder(phantom: Path, tmp_path: Path) -> None:
    """One array, its index, its report and what it was made with, in a folder named by the hash, and no pickle."""
    data = opened(phantom, tmp_path)
    folder = tmp_path / data.data_hash[:32]
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "images.npy", "index.csv", "report.csv"]
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith("known-")}
    assert names == {folder.name, f"{folder.name}.lock"}
    assert (folder / "images.npy").stat().st_size == 128 + 64 * 64 * 64


def test_hash_is_over_contents_not_places(phantom: Path, archive: Path, tmp_path: Path) -> None:
    """A copy elsewhere with other times is the same data; other pixels, labels, names or preprocessing are not."""
    one = opened(phantom, tmp_path / "cache").data_hash
    assert opened(archive, tmp_path / "cache").data_hash == one
    hashes = {one, opened(archive, tmp_path / "cache", PreprocessingConfig(img_size=64, crop_breast=False)).data_hash}
    folder = archive / "archive" / "0000001"
    (folder / "L_CC.dcm").rename(folder / "other.dcm")
    hashes.add(opened(archive, tmp_path / "cache").data_hash)
    shutil.copy(folder / "R_CC.dcm", folder / "L_MLO.dcm")
    hashes.add(opened(archive, tmp_path / "cache").data_hash)
    text = (archive / "classificacao.csv").read_text()
    label = text.splitlines()[1].split(",")[1]
    (archive / "classificacao.csv").write_text(text.replace(f"0000001,{label}", f"0000001,{2 if label != '2' else 3}"))
    hashes.add(opened(archive, tmp_path / "cache").data_hash)
    assert len(hashes) == 5


def test_two_processes_build_once(phantom: Path, tmp_path: Path) -> None:
    """Of two processes that start together one decodes, each image once; both get the same data, without torch."""
    command = [sys.executable, "-c", SCRIPT, str(phantom), str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    decoded = [sum(line.startswith("decoding") for line in output) for output in outputs]
    assert sorted(decoded) == [0, 64]


def test_a_killed_builder_loses_little(phantom: Path, tmp_path: Path) -> None:
    """After kills in the middle of decoding the next process goes on where the last one was, to the same bytes."""
    undisturbed = opened(phantom, tmp_path / "undisturbed")
    command = [sys.executable, "-c", SLOW + SCRIPT, str(phantom), str(tmp_path / "killed")]
    begun = []
    for stop_at in (20, 45):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        decoding = (line for line in process.stdout if line.startswith("decoding"))
        begun.append(next(decoding))
        for line in decoding:
            if line == f"decoding {stop_at} 64\n":
                break
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    calls: list[tuple[str, int, int]] = []
    data = opened(phantom, tmp_path / "killed", progress=lambda *call: calls.append(call))
    decoded = [done for stage, done, _ in calls if stage == "decoding"]
    assert begun[0] == "decoding 1 64\n"
    assert int(begun[1].split()[1]) > 10
    assert decoded == list(range(decoded[0], 65))
    assert decoded[0] > 30
    assert data.records == undisturbed.records
    key = data.data_hash[:32]
    for name in ("images.npy", "index.csv", "report.csv", "dataset.json"):
        assert (tmp_path / "killed" / key / name).read_bytes() == (tmp_path / "undisturbed" / key / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "killed" / key).iterdir()) == [
        "dataset.json", "images.npy", "index.csv", "report.csv",
    ]  # fmt: skip
    assert not list((tmp_path / "killed").glob("*.building"))


def test_broken_files_are_listed_and_leave_no_hole(archive: Path, tmp_path: Path) -> None:
    """Each rejected file has its code, in the report too, and the array has rows for the others alone."""
    folder = archive / "archive" / "0000002"
    (folder / "L_CC.dcm").write_text("<html>")
    data = (folder / "R_CC.dcm").read_bytes()
    (folder / "R_CC.dcm").write_bytes(data[: len(data) // 2])
    for _ in range(2):  # built, and opened again
        dataset = opened(archive, tmp_path / "cache", selection=SelectionConfig(max_rejected=0.05))
        assert len(dataset.records) == len(dataset.images) == 62
        assert dataset.images.any(axis=(1, 2)).all()
        codes = {rejection.path: rejection.code for rejection in dataset.rejections}
        assert codes["0000002/L_CC.dcm"] == Code.NOT_IMAGE
        assert codes["0000002/R_CC.dcm"] in {Code.TRUNCATED, Code.UNDECODABLE}
    assert dataset.rejected()["NOT_IMAGE"] == 1


def test_too_many_broken_files(archive: Path, tmp_path: Path) -> None:
    """More than the share asked for is an error with counts, every time; those left out on purpose do not count."""
    for name in ("L_CC", "R_CC", "L_MLO", "R_MLO"):
        (archive / "archive" / "0000002" / f"{name}.dcm").write_bytes(b"")
    (archive / "archive" / "unlabelled").mkdir()
    (archive / "archive" / "unlabelled" / "x").touch()
    for _ in range(2):
        with pytest.raises(DataError, match=r"4 of 64 images are broken \(NOT_IMAGE 4\): more than max_rejected 0.05"):
            opened(archive, tmp_path / "cache")
    data = opened(archive, tmp_path / "cache", selection=SelectionConfig(max_rejected=0.07))
    assert data.rejected() == {"NOT_IMAGE": 4, "NO_LABEL": 1}


def test_a_class_that_vanishes(archive: Path, tmp_path: Path) -> None:
    """A class of the label file without any image is an error that names it."""
    with (archive / "classificacao.csv").open() as file:
        gone = [row["AccessionNumber"] for row in csv.DictReader(file) if row["Classification"] == "4"]
    for accession in gone:
        shutil.rmtree(archive / "archive" / accession)
    with pytest.raises(DataError, match=f"class '4' has {len(gone)} labels and no usable image"):
        opened(archive, tmp_path / "cache")


def test_no_folder_fits_the_labels(archive: Path, tmp_path: Path) -> None:
    """Labels whose zeros a spreadsheet has eaten fit no folder, and that is said."""
    text = (archive / "classificacao.csv").read_text().replace("\n00000", "\n")
    (archive / "classificacao.csv").write_text(text)
    with pytest.raises(DataError, match="no file in it has a usable label"):
        opened(archive, tmp_path / "cache")


def test_wrong_places(phantom: Path, tmp_path: Path) -> None:
    """A missing label file or root is wrong input."""
    with pytest.raises(InputError, match="absent"):
        open_dataset(tmp_path / "absent", phantom / "archive", CONFIG, tmp_path)
    with pytest.raises(InputError, match="absent"):
        open_dataset(phantom / "classificacao.csv", tmp_path / "absent", CONFIG, tmp_path)


def test_a_cache_that_cannot_be_written(phantom: Path, tmp_path: Path) -> None:
    """A place where nothing can be written is an error in one line."""
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be kept there") as error:
        opened(phantom, tmp_path / "file" / "cache")
    assert "\n" not in str(error.value)


def test_a_full_disk(phantom: Path, tmp_path: Path) -> None:
    """A disk that is full in the middle is an error in one line and leaves no half cache."""
    limited = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
    )
    command = [sys.executable, "-c", limited + SCRIPT, str(phantom), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DataError" in done.stderr.splitlines()[-1]
    assert "cannot be kept there: File too large" in done.stderr.splitlines()[-1]
    assert [path.suffix for path in tmp_path.iterdir() if not path.name.startswith("known-")] == [".lock"]


@pytest.mark.parametrize("form", ["array of objects", "plain pickle", "archive of pickles", "senseless header"])
def test_a_pickle_in_place_of_the_array(phantom: Path, tmp_path: Path, form: str) -> None:
    """Whatever lies where the decoded images were is refused in one line, and nothing in it is run."""
    opened(phantom, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*/images.npy")
    bomb = Bomb(str(tmp_path / "made"))
    if form == "array of objects":
        np.save(path, np.array([bomb], dtype=object), allow_pickle=True)
    elif form == "archive of pickles":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("images.npy", pickle.dumps(bomb))
    else:
        path.write_bytes(pickle.dumps(bomb) if form == "plain pickle" else b"\x93NUMPY\x01\x00\x02\x00((")
    with pytest.raises(DataError, match=r"damaged.*remove it") as error:
        opened(phantom, tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()


def test_a_damaged_cache(phantom: Path, tmp_path: Path) -> None:
    """An array that does not fit its index is refused with what to do about it."""
    data = opened(phantom, tmp_path)
    array = tmp_path / data.data_hash[:32] / "images.npy"
    del data
    os.truncate(array, 5000)
    with pytest.raises(DataError, match=r"damaged.*remove it"):
        opened(phantom, tmp_path)
    np.save(array, np.zeros((63, 64, 64), np.uint8))
    with pytest.raises(DataError, match=r"damaged.*63.*64 images"):
        opened(phantom, tmp_path)


@pytest.mark.parametrize(
    "change",
    [lambda text: text + "a,b\n", lambda text: text.replace(",3,", ",2,"), lambda text: text.replace("\n", "\0")],
)
def test_a_damaged_index(phantom: Path, tmp_path: Path, change: Callable[[str], str]) -> None:
    """An index that is not that of these images, with another label for one, is refused in one line."""
    data = opened(phantom, tmp_path)
    index = tmp_path / data.data_hash[:32] / "index.csv"
    index.write_text(change(index.read_text()))
    with pytest.raises(DataError, match=r"damaged.*remove it") as error:
        opened(phantom, tmp_path)
    assert "\n" not in str(error.value)


def test_patient_ids_that_nobody_has_to_read(phantom: Path, tmp_path: Path) -> None:
    """Where the label file names the patients, the PatientID only joins, and stands in no file."""
    paths = sorted(path.relative_to(phantom / "archive").as_posix() for path in phantom.rglob("*.dcm"))
    rows = "".join(f"{path},{number % 2},{number // 8}\n" for number, path in enumerate(paths))
    (tmp_path / "table.csv").write_text("image,label,patient\n" + rows)
    settle(phantom)
    data = open_dataset(tmp_path / "table.csv", phantom / "archive", CONFIG, tmp_path / "cache")
    assert len(set(data.patients)) == 8
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert any(path.name.startswith("known-") for path in written)
    assert not [path for path in written if b"PHANTOM" in path.read_bytes()]


@pytest.mark.parametrize("cache_mode", ["memory", "none"])
def test_modes_that_keep_nothing_on_the_disk(archive: Path, tmp_path: Path, cache_mode: str) -> None:
    """Hash, records, rejections and pixels are those of the cache, every image is decoded once, and no file is left."""
    folder = archive / "archive" / "0000002"
    (folder / "L_CC.dcm").write_text("<html>")
    with (folder / "R_CC.dcm").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 2000)
    (archive / "archive" / "unlabelled").mkdir()
    (archive / "archive" / "unlabelled" / "x").touch()
    calls: list[tuple[str, int, int]] = []
    arguments = {"cache_mode": cache_mode, "progress": lambda *call: calls.append(call)}
    data = opened(archive, tmp_path / "nowhere", **arguments)
    assert not (tmp_path / "nowhere").exists()
    cached = opened(archive, tmp_path / "cache")
    assert sum(stage == "decoding" for stage, _, _ in calls) == calls[-1][2] >= 62
    assert (data.data_hash, data.records, data.class_names) == (cached.data_hash, cached.records, cached.class_names)
    assert data.rejections == cached.rejections
    assert data.images.shape == cached.images.shape == (62, 64, 64)
    everything = data.images if cache_mode == "memory" else data.images.read(np.arange(62))
    np.testing.assert_array_equal(everything, cached.images)


def test_errors_without_a_cache(archive: Path, tmp_path: Path) -> None:
    """Too many broken files and other data than those that were expected are refused as with a cache."""
    with pytest.raises(OtherDataError):
        opened(archive, tmp_path / "nowhere", cache_mode="none", expected_hash="0" * 64)
    for path in (archive / "archive" / "0000002").iterdir():
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"4 of 64 images are broken \(TRUNCATED 4\)"):
        opened(archive, tmp_path / "nowhere", cache_mode="none")
    assert not (tmp_path / "nowhere").exists()


def test_real_films(real_data: Path, tmp_path: Path) -> None:
    """The 322 scanned films are all used, and the patients are the 161 of their headers."""
    start = time.monotonic()
    folder = real_data / "mini_mias"
    data = open_dataset(folder / "classificacao.csv", folder / "archive", CONFIG, tmp_path)
    assert np.bincount(data.labels).tolist() == [106, 104, 112]
    assert data.class_names == ("1", "2", "3")
    assert len(set(data.patients)) == 161
    assert not data.rejections
    assert time.monotonic() - start < 60
