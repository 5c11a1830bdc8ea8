"""What others may read of a trial."""

from __future__ import annotations

import json

from optuna.distributions import CategoricalDistribution, distribution_to_json

from hpo.exhibition import public
from storage.record import File, TrialRecord


def test_folders_are_called_by_their_name_and_no_guess_can_be_proved() -> None:
    """Wherever a setting stands; files with names in them have no hash there; the record itself stays as it was."""
    choices = [None, "/data/of/Maria/vectors"]
    names = ("fold_0/val_predictions.csv", "oof_predictions.csv", "fold_0/embeddings_val.csv", "fold_0/best_model.pth")
    record = TrialRecord(
        study="s", number=0, root_number=0, attempts=[], state="pruned", reason="0042", value=None,
        params={"embeddings_dir": choices[1], "lr": 0.1},
        distributions={"embeddings_dir": distribution_to_json(CategoricalDistribution(choices))},
        fold_scores=[None], n_folds_done=0, pruned_at=None, config={"weights": "/data/of/Maria/w.pth", "arch": "x", "epochs": 1},
        seeds={}, threads=1, resolution=None, versions={}, git_commit=None, data_hash="d", folds_hash="f", device="cpu",
        gpu_seconds=0.0, started_at=None, finished_at=None,
        artifacts=[File(name=name, bytes=1, sha256="0") for name in names],
    )  # fmt: skip
    before = record.model_dump_json()
    said = public(record, lambda text: text.replace("0042", "patient-1"))
    assert "/data" not in said.model_dump_json()
    assert "Maria" not in said.model_dump_json()
    assert (said.reason, said.params) == ("patient-1", {"embeddings_dir": "…/vectors", "lr": 0.1})
    assert json.loads(said.distributions["embeddings_dir"])["attributes"]["choices"] == [None, "…/vectors"]
    assert said.config == {"weights": "…/w.pth", "arch": "x", "epochs": 1}
    assert [file.name for file in said.artifacts] == ["fold_0/best_model.pth"]
    assert record.model_dump_json() == before
