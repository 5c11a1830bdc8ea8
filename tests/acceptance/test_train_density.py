"""One configuration by hand: the contract's files, and no run ever over another."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from tests.laboratory import Laboratory

SMALL = (
    "--arch", "tf_efficientnet_lite0", "--weights", "bundled", "--img-size", "32", "--epochs", "2", "--batch-size", "8",
    "--warmup-epochs", "1", "--class-weights", "auto", "--train-augment", "--threads", "1",
)  # fmt: skip


def test_split_by_hand(laboratory: Laboratory) -> None:
    """Twice the same command: two folders with the same history, and metrics that scikit-learn computes again."""
    for number in (1, 2):
        out = laboratory.ok("train-density", "--", *laboratory.data, *SMALL, "--outdir", "runs")
        assert out.splitlines()[-1].endswith(f"runs/results_{number}")
    first, second = (laboratory.folder / "runs" / f"results_{number}" for number in (1, 2))
    histories = [json.loads((folder / "train_history.json").read_text()) for folder in (first, second)]
    for history in histories:
        for record in history:
            assert record.pop("seconds") > 0
            assert record.pop("images_per_second") > 0
    assert histories[0] == histories[1]
    assert [record["lr"]["head"] for record in histories[0]] == pytest.approx([1e-4, 1e-4])

    summary = json.loads((first / "summary.json").read_text())
    folds = pd.read_csv(first / "val_predictions.csv", dtype={"label": str, "prediction": str})
    assert len(folds) == summary["val_samples"]
    assert len(summary["class_weights"]) == 4
    metrics = json.loads((first / "metrics" / "val_metrics.json").read_text())
    assert metrics["balanced_acc_adj"] == pytest.approx(
        balanced_accuracy_score(folds["label"], folds["prediction"], adjusted=True)
    )
    assert metrics["kappa_quadratic"] == pytest.approx(
        cohen_kappa_score(folds["label"], folds["prediction"], labels=metrics["class_names"], weights="quadratic")
    )
    probabilities = folds[[f"p_{name}" for name in metrics["class_names"]]].to_numpy()
    assert metrics["auc_ovr"] == pytest.approx(roc_auc_score(folds["label"], probabilities, multi_class="ovr"))
    assert {"best_model.pth", "last_model.pth", "run.log", "summary.json"} <= {path.name for path in first.iterdir()}


def test_folder_that_is_not_empty_is_refused(laboratory: Laboratory) -> None:
    """A cross-validation never writes over what is there."""
    (laboratory.folder / "taken").mkdir()
    (laboratory.folder / "taken" / "notes.txt").write_text("mine")
    finished = laboratory.run("train-density", *laboratory.data, *SMALL, "--cv-folds", 2, "--cv-outdir", "taken")
    assert finished.code == 2
    assert "--cv-outdir taken: must be empty or new" in finished.err
    assert [path.name for path in (laboratory.folder / "taken").iterdir()] == ["notes.txt"]


def test_weights_that_cannot_be_had_are_an_error(laboratory: Laboratory) -> None:
    """Never a random start in place of weights that were asked for: one line that says how to get them."""
    finished = laboratory.run("train-density", *laboratory.data, "--arch", "resnet18", "--weights", "bundled")
    assert finished.code == 2
    line = finished.err.splitlines()[-1]
    assert "bundled are for arch tf_efficientnet_lite0, not resnet18" in line
