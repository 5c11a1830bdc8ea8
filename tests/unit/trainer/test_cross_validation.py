"""k folds: every image predicted once, the value the mean of the folds, an interruption without a trace."""

from __future__ import annotations

import csv
import json
import statistics
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from trainer.config import TrainConfig
from trainer.cross_validation import CrossValidation, cross_validate, objective
from trainer.data.folds import Folds
from trainer.data.records import Dataset
from trainer.errors import StopRequestedError
from trainer.resolve import Compute
from trainer.seeds import Seeds

Make = Callable[..., TrainConfig]


@pytest.fixture
def folds(dataset: Dataset) -> Folds:
    """Three folds, image by image in turn."""
    paths = tuple(record.path for record in dataset.records)
    return Folds(assignment=np.arange(len(paths)) % 3, n_folds=3, paths=paths)


@pytest.fixture
def run(dataset: Dataset, folds: Folds, compute: Compute, listener: Any) -> Callable[..., CrossValidation]:
    """A function that cross-validates a configuration in a run's folder."""

    def call(config: TrainConfig, folder: Any, stop: Any = None) -> CrossValidation:
        usual = {"compute": compute, "listener": listener}
        signal = stop or threading.Event()
        return cross_validate(config, dataset, folds, Seeds(42, 3), folder=folder, stop=signal, **usual)

    return call


def test_every_image_is_predicted_once_and_the_numbers_follow(
    config: Make, run: Callable[..., CrossValidation], run_folder: Any, dataset: Dataset, listener: Any
) -> None:
    """The value is the mean of the folds' scores, and scikit-learn on `oof_predictions.csv` gives the pooled numbers."""
    result = run(config(epochs=2), run_folder)
    with (run_folder.path / "oof_predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == [record.path for record in dataset.records]
    assert [int(row["fold"]) for row in rows] == [i % 3 for i in range(len(rows))]
    labels, predicted = [row["label"] for row in rows], [row["prediction"] for row in rows]
    pooled = reference.balanced_accuracy_score(labels, predicted, adjusted=True)
    assert result.pooled.balanced_acc_adj == pytest.approx(pooled)
    scores = []
    for fold in range(3):
        own = [i for i, row in enumerate(rows) if row["fold"] == str(fold)]
        truth, guess = [labels[i] for i in own], [predicted[i] for i in own]
        scores.append(reference.balanced_accuracy_score(truth, guess, adjusted=True))
    assert [each.score for each in result.folds] == pytest.approx(scores)
    assert result.value == pytest.approx(statistics.fmean(scores))
    assert listener.folds == list(result.folds)


def test_the_summary_has_mean_and_deviation_of_every_metric(
    config: Make, run: Callable[..., CrossValidation], run_folder: Any
) -> None:
    """`cv_summary.json` repeats the value, each fold, and the spread over the folds."""
    result = run(config(epochs=1), run_folder)
    content = json.loads((run_folder.path / "cv_summary.json").read_text())
    scores = [each.score for each in result.folds]
    assert content["value"] == result.value == content["mean"]["balanced_acc_adj"]
    assert content["std"]["balanced_acc_adj"] == pytest.approx(np.std(scores, ddof=1))
    losses = [each.metrics.per_class["B"].loss for each in result.folds]
    assert content["mean"]["per_class.B.loss"] == pytest.approx(np.mean(losses))
    assert [fold["fold"] for fold in content["folds"]] == [0, 1, 2]
    assert content["pooled"]["class_names"] == ["A", "B", "C"]
    assert (run_folder.path / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_equals_an_undisturbed_one_to_the_bit(
    config: Make, run: Callable[..., CrossValidation], run_folder: Any, stop_after: Any, listener: Any, tmp_path: Path
) -> None:
    """Stopped every few steps until it is done: the same value, folds and predictions, and no fold trained twice."""
    made = config(epochs=2)
    whole_folder = type(run_folder)(tmp_path / "whole")
    whole_folder.path.mkdir()
    whole = run(made, whole_folder)
    broken_folder = type(run_folder)(tmp_path / "broken")
    broken_folder.path.mkdir()
    listener.folds.clear()
    resumed = None
    while resumed is None:
        try:
            resumed = run(made, broken_folder, stop_after(13))
        except StopRequestedError:
            continue
    assert resumed == whole
    assert [result.fold for result in listener.folds] == [0, 1, 2]
    name = "oof_predictions.csv"
    assert (broken_folder.path / name).read_bytes() == (whole_folder.path / name).read_bytes()
    name = "cv_summary.json"
    assert (broken_folder.path / name).read_bytes() == (whole_folder.path / name).read_bytes()


def test_a_fold_without_a_score_leaves_no_value(
    config: Make, run: Callable[..., CrossValidation], run_folder: Any
) -> None:
    """A mean over fewer folds would be another number."""
    result = run(config(epochs=1), run_folder)
    unscored = result.folds[1].model_copy(update={"score": None})
    assert objective((result.folds[0], unscored, result.folds[2])) is None
