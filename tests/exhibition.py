"""A study to be looked at: registered as ours, its trials with fold scores, notes and artifacts as a search leaves them."""

from __future__ import annotations

import io
import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.study_file import StudyFile
from storage import exhibits, ledger
from storage.artifact_store import ArtifactStore
from storage.study_storage import StudyStorage

FOLDS = 3
CSV = "image,label,prediction,p_1,p_2\n0f3a,1,1,0.8,0.2\n77bc,2,1,0.6,0.4\n"
SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-5, 1e-2, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
    "class_weights": CategoricalDistribution(["none", "auto"]),
}
_BEGAN = datetime(2026, 11, 25, 8, tzinfo=UTC).replace(tzinfo=None)


def resolved(name: str) -> dict[str, Any]:
    """Return a study file as the database holds it."""
    file = StudyFile.model_validate(
        {
            "study": name,
            "cv": {"folds": FOLDS},
            "search": {
                "lr": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
                "dropout": {"type": "float", "low": 0.0, "high": 0.5},
                "class_weights": {"type": "categorical", "choices": ["none", "auto"]},
            },
            "pruning": {"name": "auto"},
            "budget": {"trials": 24, "hours": 12},
        }
    )
    return file.model_dump(mode="json")


def folds_csv(patients: int = 30) -> str:
    """Return a study's folds: two images of each patient, of four labels; every name in it says that it is secret."""
    lines = ["image,patient,label,fold"]
    for patient in range(patients):
        lines += [
            f"secret-{patient}/{view}.dcm,secret-{patient},{patient % 4 + 1},{patient % FOLDS}"
            for view in ("cc", "mlo")
        ]
    return "\n".join(lines) + "\n"


def register(storage: StudyStorage, name: str) -> int:
    """Create a study of ours without trials, and return its id."""
    study = optuna.create_study(storage=storage.optuna, study_name=name, direction="maximize")
    with storage.engine.begin() as connection:
        assert ledger.register(
            connection,
            study_id=study._study_id,
            resolved=resolved(name),
            data_hash="d0" * 32,
            folds_hash="f0" * 32,
            folds_csv=folds_csv(),
            limits=ledger.Limits(24, 12.0),
        )
    return study._study_id


def trial(number: int, attributes: dict[str, Any] | None = None) -> FrozenTrial:
    """Return a finished trial: every fourth was pruned after its first fold."""
    pruned = number % 4 == 3
    scores = [0.5 + 0.03 * ((number * 7 + fold * 5) % 11 - 5) / 5 for fold in range(1 if pruned else FOLDS)]
    made = create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=None if pruned else sum(scores) / FOLDS,
        params={
            "lr": 10 ** (-5 + (number * 0.37) % 3),
            "dropout": (number * 0.19) % 0.5,
            "class_weights": ("none", "auto")[number % 2],
        },
        distributions=SPACE,
        intermediate_values=dict(enumerate(scores)),
        system_attrs=attributes or {},
    )
    made.datetime_start = _BEGAN + timedelta(minutes=10 * number)
    made.datetime_complete = made.datetime_start + timedelta(minutes=4 if pruned else 9)
    return made


def note(number: int) -> str:
    """Return a trial's note."""
    return f"### Trial {number}\n\n| fold | score |\n| --- | --- |\n| 0 | 0.5 |\n\nconfiguration and *attempts*"


def artifact(store: ArtifactStore, filename: str, mimetype: str, content: bytes) -> dict[str, str]:
    """Keep a file in *store*, and return the attribute of the trial that it is to belong to."""
    name = str(uuid.uuid4())
    store.write(name, io.BytesIO(content))
    meta = {"artifact_id": name, "filename": filename, "mimetype": mimetype, "encoding": None}
    return {f"artifacts:{name}": json.dumps(meta)}


def exhibit(
    storage: StudyStorage, store: ArtifactStore, picture: Path, *, name: str = "density", trials: int = 12
) -> int:
    """Create a study of ours with so many finished trials, each with a note, a picture and a table; return its id."""
    study_id = register(storage, name)
    study = optuna.load_study(study_name=name, storage=storage.optuna)
    for number in range(trials):
        study.add_trial(
            trial(
                number,
                {
                    exhibits.NOTE: note(number),
                    **artifact(store, "training_curves.png", "image/png", picture.read_bytes()),
                    **artifact(store, "oof_predictions.csv", "text/csv", CSV.encode()),
                },
            )
        )
    return study_id
