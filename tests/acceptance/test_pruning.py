"""A hopeless trial in a real search: given up after its first fold, with the reason on disk and in the database."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch
from optuna.trial import TrialState

from hpo.creation import create
from hpo.objective import Training
from hpo.station import set_up_station
from hpo.study import DataPlace, best_trial
from hpo.study_file import StudyFile
from hpo.worker import Worker
from storage import ledger, steering
from storage.claims import Idle
from storage.patience import Patience
from storage.study_storage import open_storage
from storage.tree import OutputTree
from trainer.data.phantom import make_phantom


@pytest.fixture(autouse=True)
def _process_as_before() -> object:
    """Leave the process's threads and determinism as they were."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


def test_hopeless_trial_is_given_up_after_its_first_fold(database_url: sa.URL, tmp_path: Path) -> None:
    """
    Beside four trials of another study that were nearly perfect, an untrained network is hopeless: one fold is trained of
    three, it is published and counts, the trial is PRUNED and never the best.
    """
    make_phantom(tmp_path, patients=24, side=64)
    file = StudyFile.model_validate(
        {
            "study": "small",
            "data": {"csv": tmp_path / "classificacao.csv", "dicom_root": tmp_path / "archive"},
            "cv": {"folds": 3},
            "train": {"arch": "test_efficientnet", "weights": "none", "img_size": 32, "epochs": 1, "batch_size": 8},
            "search": {"lr": {"type": "float", "low": 1e-12, "high": 1e-2, "log": True}},
            "pruning": {"name": "auto"},
            "budget": {"trials": 1},
        }
    )
    tree, storage = OutputTree(tmp_path / "outputs"), open_storage(database_url, application_name="test")
    study = create(file, DataPlace.choose(file, tree, csv=None, dicom_root=None), tree, storage, None)
    study_id = study.registration.study_id
    for number in range(4):
        scores = {fold: 0.95 + number / 100 + fold / 1000 for fold in range(3)}
        steering.add_finished(
            storage.engine, study_id, state=TrialState.COMPLETE, value=sum(scores.values()) / 3,
            params={"lr": 10.0 ** -(number + 5)}, distributions=study.space.distributions(["lr"]), scores=scores,
            attributes={"from": {"study": "older", "number": number}},
        )  # fmt: skip
    stop = threading.Event()
    station = set_up_station(
        study, tree, device="cpu", per_gpu=1, threads=1, patience=Patience(5), stop=stop, csv=None, dicom_root=None
    )
    assert Worker(station.claims, Training(station), stop).run() is Idle.SPENT

    (pruned,) = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert (list(pruned.intermediate_values), pruned.values) == ([0], None)
    record = json.loads(study.folder.trial(pruned.number).record.read_text())
    assert (record["state"], record["pruned_at"], record["value"], record["n_folds_done"]) == ("pruned", 0, None, 1)
    assert record["reason"] == pruned.user_attrs["reason"]
    assert record["reason"].startswith("after fold 0: ")
    assert study.folder.trial(pruned.number).fold(0).is_dir()
    assert best_trial(study).values[0] > 0.9
    assert ledger.budget(storage.engine, study_id).spent == 1
