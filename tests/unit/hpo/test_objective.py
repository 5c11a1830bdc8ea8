"""A worker's station: what it opens, and how often."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from hpo.creation import settle_embeddings
from hpo.errors import NotTheStudysEmbeddingsError
from hpo.station import Station
from hpo.study import with_embeddings
from hpo.study_file import StudyFile
from trainer.config import PreprocessingConfig
from trainer.data.division import make_folds
from trainer.data.folds import to_csv
from trainer.data.records import Dataset, ImageRecord
from trainer.embeddings import read_embeddings


@dataclass(frozen=True)
class CountingPlace:
    """An archive whose openings are counted: a real one is read from end to end each time."""

    dataset: Dataset
    opened: list[int] = field(default_factory=list)

    def until(self, stop: object) -> CountingPlace:  # noqa: ARG002 - nobody stops it
        """Return itself: nobody stops it."""
        return self

    def open(self, preprocessing: PreprocessingConfig) -> Dataset:
        """Return the same images at another size."""
        self.opened.append(preprocessing.img_size)
        return replace(self.dataset, data_hash=f"at {preprocessing.img_size}")


@dataclass(frozen=True)
class FakeRegistration:
    """What is stored of the folds."""

    folds_csv: str


@dataclass(frozen=True)
class FakeStudy:
    """A study without a database."""

    file: StudyFile
    registration: FakeRegistration


def test_a_trial_has_the_vectors_that_it_asks_for(tmp_path: Path) -> None:
    """And none where it asks for none, although the study's own configuration has some; others than the study's are refused."""
    records = tuple(ImageRecord(f"{i}.dcm", "0" * 64, f"{i}", f"p{i}", i % 2, None, None) for i in range(8))
    dataset = Dataset(np.zeros((8, 32, 32), np.uint8), records, ("A", "B"), (), "as the study")
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "features.npy", np.full((8, 2), number, np.float32))
        rows = [f"{record.path},{record.accession}" for record in records]
        (tmp_path / name / "metadata.csv").write_text("\n".join(["image,accession", *rows]))
    folders = [str(tmp_path / name) for name in ("a", "b")]
    file = StudyFile.model_validate(
        {
            "study": "s",
            "train": {"img_size": 32, "embeddings_dir": folders[0]},
            "search": {"embeddings_dir": {"type": "categorical", "choices": [None, *folders]}},
            "budget": {"trials": 2},
        }
    )
    assert [str(folder) for folder in file.embeddings_dirs()] == folders
    file = settle_embeddings(file, [read_embeddings(folder) for folder in file.embeddings_dirs()], dataset)
    own = with_embeddings(file, dataset, file.train.embeddings_dir)
    folds = make_folds(dataset, 2, 0)
    study: Any = FakeStudy(file, FakeRegistration(to_csv(folds, dataset)))
    station = Station(study, cast("Any", None), cast("Any", None), own, folds, torch.device("cpu"), 1)
    features = [station.data(file.space().configure({"embeddings_dir": each}))[0].features for each in (None, *folders)]
    assert features[0] is None
    assert features[1] is not None
    assert features[2] is not None
    assert (features[1].max(), features[2].max()) == (0, 1)

    np.save(tmp_path / "b" / "features.npy", np.full((8, 2), 2, np.float32))
    with pytest.raises(NotTheStudysEmbeddingsError, match=r"b: the vectors there differ from those that study 's'"):
        with_embeddings(file, dataset, tmp_path / "b")
    unknown = file.model_copy(update={"data": file.data.model_copy(update={"embeddings": {}})})
    with pytest.raises(NotTheStudysEmbeddingsError):
        with_embeddings(unknown, dataset, tmp_path / "a")


def test_each_preprocessing_is_opened_once() -> None:
    """A trial asks for its data when it trains and when it writes its record, and so do the trials after it."""
    records = tuple(ImageRecord(f"{i}.dcm", "0" * 64, f"{i}", f"p{i}", i % 2, None, None) for i in range(8))
    dataset = Dataset(np.zeros((8, 32, 32), np.uint8), records, ("A", "B"), (), "as the study")
    file = StudyFile.model_validate(
        {
            "study": "s",
            "train": {"img_size": 32},
            "search": {"img_size": {"type": "categorical", "choices": [32, 64]}},
            "budget": {"trials": 2},
        }
    )
    folds = make_folds(dataset, 2, 0)
    place = CountingPlace(dataset)
    study: Any = FakeStudy(file, FakeRegistration(to_csv(folds, dataset)))
    station = Station(study, cast("Any", None), cast("Any", place), dataset, folds, torch.device("cpu"), 1)
    for _ in range(2):
        for size in (32, 64):
            data, found = station.data(file.space().configure({"img_size": size}))
            assert data.data_hash == ("as the study" if size == 32 else "at 64")
            assert found.hash == folds.hash
    assert place.opened == [64]
