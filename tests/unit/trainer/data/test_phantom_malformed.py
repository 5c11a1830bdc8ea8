from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from trainer.config import PreprocessingConfig, SelectionConfig
from trainer.data.cache import open_dataset
from trainer.data.phantom import make_phantom
from trainer.data.phantom_malformed import EXPECTED
from trainer.data.records import Code, Dataset


@pytest.fixture(scope="module")
def malformed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of four patients with everything that is malformed; not to be changed."""
    folder = tmp_path_factory.mktemp("malformed") / "archive"
    make_phantom(folder, patients=4, side=64, malformed=True)
    return folder


@pytest.fixture(scope="module")
def data(malformed: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """What is read of it."""
    return open_dataset(
        malformed / "classificacao.csv",
        malformed / "archive",
        PreprocessingConfig(img_size=64),
        tmp_path_factory.mktemp("cache"),
        selection=SelectionConfig(max_rejected=1),
    )


def test_every_file_is_there_and_its_label(malformed: Path) -> None:
    """Each has a folder of its own, and all but one of the folders have a label."""
    root = malformed / "archive"
    found = {
        path.relative_to(root).as_posix()
        for folder in root.glob("09*")
        for path in folder.iterdir()
        if path.is_file() or path.is_symlink()
    }
    assert found == {path for path in EXPECTED if "/" in path}
    with (malformed / "classificacao.csv").open() as file:
        labels = {row["AccessionNumber"]: row["Classification"] for row in csv.DictReader(file)}
    for path, code in EXPECTED.items():
        label = labels.get(path.partition("/")[0])
        assert (label is None) == (code == Code.NO_LABEL)
        assert (label == "5") == (code == Code.EXCLUDED_CLASS)


def test_the_same_bytes_again(malformed: Path, tmp_path: Path) -> None:
    """Nothing in it comes from a clock or another generator of random numbers."""
    make_phantom(tmp_path / "again", patients=4, side=64, malformed=True)
    for path in malformed.rglob("*"):
        again = tmp_path / "again" / path.relative_to(malformed)
        assert again.is_symlink() == path.is_symlink()
        if path.is_file():
            assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", EXPECTED)
def test_what_becomes_of_it(path: str, data: Dataset) -> None:
    """It is refused with its code, or used where it is odd and good."""
    refused = {rejection.path: rejection.code for rejection in data.rejections}
    used = {record.path for record in data.records}
    assert refused.get(path) == EXPECTED[path]
    assert (path in used) == (EXPECTED[path] is None)


def test_the_whole_images_are_used(data: Dataset) -> None:
    """Four images of each of the four patients, beside the odd ones that are good."""
    whole = sum(code is None for code in EXPECTED.values())
    assert len(data.records) == 16 + whole
    assert len(data.rejections) == len(EXPECTED) - whole


def test_broken_files_are_few_enough_with_60_patients() -> None:
    """A run on the default number of patients accepts the share that is broken."""
    counts = Counter(code is not None and code.broken for code in EXPECTED.values())
    labelled = 4 * 60 + sum(
        code not in {Code.NO_LABEL, Code.NO_IMAGE, Code.EXCLUDED_CLASS} for code in EXPECTED.values()
    )
    assert counts[True] <= SelectionConfig().max_rejected * labelled
