"""A worker's station: what it opens, and how often."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from hpo.objective import Station
from hpo.study_file import StudyFile
from trainer.config import PreprocessingConfig
from trainer.data.folds import make_folds, to_csv
from trainer.data.records import Dataset, ImageRecord


@dataclass(frozen=True)
class CountingPlace:
    """An archive whose openings are counted: a real one is read from end to end each time."""

    dataset: Dataset
    opened: list[int] = field(default_factory=list)

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
