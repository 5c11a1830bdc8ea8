"""A study on a synthetic archive, small enough for two cores and a few minutes."""

from __future__ import annotations

import itertools
from pathlib import Path

from rich.console import Console

from hpo.creation import create
from hpo.live import opening_progress
from hpo.study import DataPlace, Study
from hpo.study_file import StudyFile
from storage import ledger
from storage.study_storage import StudyStorage
from storage.tree import OutputTree
from trainer.data.phantom import make_phantom

_STUDY = {
    "cv": {"folds": 3},
    "train": {
        "arch": "tf_efficientnet_lite0",
        "weights": "bundled",
        "img_size": 96,
        "epochs": 5,
        "batch_size": 16,
        "train_augment": True,
    },
    "search": {
        "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "backbone_lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
        "warmup_epochs": {"type": "int", "low": 0, "high": 2},
        "class_weights": {"type": "categorical", "choices": ["none", "auto"]},
    },
    "sampler": {"name": "tpe", "startup_trials": 4},
}


def prepare(
    tree: OutputTree, storage: StudyStorage, console: Console, *, trials: int, patients: int
) -> tuple[Path, Study]:
    """Make an archive and a study, `demo-1` or the next free number, and return the archive's folder and the study."""
    known = set(ledger.study_names(storage.engine))
    name, archive = next(
        (name, archive)
        for number in itertools.count(1)
        if (name := f"demo-{number}") not in known and not (archive := tree.root / f"{name}-archive").exists()
    )
    make_phantom(archive, patients=patients)
    file = StudyFile.model_validate(
        {
            **_STUDY,
            "study": name,
            "budget": {"trials": trials},
            "data": {"csv": archive / "classificacao.csv", "dicom_root": archive / "archive"},
        }
    )
    place = DataPlace.choose(file, tree, csv=None, dicom_root=None)
    with opening_progress(console) as progress:
        return archive, create(file, place, tree, storage, progress)
