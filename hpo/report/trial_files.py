"""What the best trial has left in the output tree, and what of it is missing."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from hpo.study import Study
from hpo.warm_start import Origin
from storage.errors import StudyNameError
from storage.tree import OutputTree, TrialFolder
from trainer.artifacts import HISTORY, Predictions, read_fold, read_history, read_predictions
from trainer.metrics import evaluate
from trainer.records import EpochRecord, FoldResult, Metrics

_OUT_OF_FOLD = "oof_predictions.csv"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Pooled:
    """Every image once, predicted by the fold that did not train on it."""

    predictions: Predictions
    metrics: Metrics
    by_fold: tuple[Metrics, ...]


@dataclass(frozen=True)
class TrialFiles:
    """The files of a trial."""

    pooled: Pooled | None
    histories: Mapping[int, Sequence[EpochRecord]]
    """By fold, as far as they are there."""
    results: Sequence[FoldResult]
    """Of the folds, as far as they are there."""
    missing: tuple[str, ...]
    """What is not there or cannot be used, and why: a sentence each."""


def read_files(study: Study, trial: FrozenTrial) -> TrialFiles:
    """Return what is left of *trial*; what is missing or is another trial's is said and left out."""
    folder, missing = _folder(study, trial), []
    if not folder.path.is_dir():
        return TrialFiles(None, {}, (), (f"its folder {folder.path.name} is not in the output tree",))
    histories: dict[int, Sequence[EpochRecord]] = {}
    results: list[FoldResult] = []
    for fold in range(study.file.cv.folds):
        try:
            results.append(read_fold(folder.fold(fold)))
        except OSError:
            missing.append(f"{folder.fold(fold).name}/metrics/val_metrics.json is not there")
        except ValueError:
            missing.append(f"{folder.fold(fold).name}/metrics/val_metrics.json cannot be read")
        try:
            histories[fold] = read_history(folder.fold(fold))
        except OSError:
            missing.append(f"{folder.fold(fold).name}/{HISTORY} is not there")
        except ValueError:
            missing.append(f"{folder.fold(fold).name}/{HISTORY} cannot be read")
    pooled: Pooled | None = None
    try:
        pooled = _read_pooled(folder.path / _OUT_OF_FOLD, study.file.cv.folds)
    except OSError:
        missing.append(f"{_OUT_OF_FOLD} is not there")
    except (KeyError, ValueError, TypeError, csv.Error):
        missing.append(f"{_OUT_OF_FOLD} cannot be read")
    if pooled is not None and not _same_scores(pooled, trial):
        pooled = None
        missing.append(f"{_OUT_OF_FOLD} gives other fold scores than the database has: it is not this trial's")
    return TrialFiles(pooled, histories, results, tuple(missing))


def _folder(study: Study, trial: FrozenTrial) -> TrialFolder:
    """Return the folder of *trial*: of one that was taken over, the original's."""
    if "from" not in trial.user_attrs:
        return study.folder.trial(trial.number)
    origin = Origin.model_validate(trial.user_attrs["from"])
    try:
        return OutputTree(study.folder.path.parent).study(origin.study).trial(origin.number)
    except StudyNameError:
        return study.folder.trial(trial.number)


def _read_pooled(path: Path, n_folds: int) -> Pooled:
    """Return the predictions at *path* with their metrics. Raises OSError, KeyError, ValueError, TypeError, csv.Error."""
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        columns = list(reader.fieldnames or ())
        folds = np.array([int(row["fold"]) for row in reader], dtype=np.int64)
    class_names = tuple(column.removeprefix("p_") for column in columns if column.startswith("p_"))
    predictions = read_predictions(path, class_names)
    if not len(folds) or set(folds.tolist()) != set(range(n_folds)) or not np.isfinite(predictions.probabilities).all():
        raise ValueError(f"{path}: not the predictions of {n_folds} folds")
    return Pooled(
        predictions,
        evaluate(predictions.labels, predictions.probabilities, class_names),
        tuple(_evaluate_fold(predictions, folds == fold, class_names) for fold in range(n_folds)),
    )


def _evaluate_fold(predictions: Predictions, inside: NDArray[np.bool_], class_names: tuple[str, ...]) -> Metrics:
    return evaluate(predictions.labels[inside], predictions.probabilities[inside], class_names)


def _same_scores(pooled: Pooled, trial: FrozenTrial) -> bool:
    """Return whether the predictions give the fold scores that the database has of *trial*."""
    return all(
        metrics.balanced_acc_adj is not None
        and abs(metrics.balanced_acc_adj - trial.intermediate_values[fold]) < _ROUNDING
        for fold, metrics in enumerate(pooled.by_fold)
    )
