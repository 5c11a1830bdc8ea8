"""The files of a finished fold: its history, metrics and predictions; written from the records and read back into them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from trainer import pictures
from trainer.data.records import ImageRecord
from trainer.files import write_text, written_whole
from trainer.records import EpochRecord, FoldResult, Metrics

HISTORY = "train_history.json"
PREDICTIONS = "val_predictions.csv"
EMBEDDINGS = "embeddings_val.npy"

_HISTORY = TypeAdapter(tuple[EpochRecord, ...])
_LEADING = ("image", "patient", "label", "prediction")


class ValMetrics(EpochRecord):
    """The content of `val_metrics.json`: the history's record of the best epoch, and what belongs to the fold."""

    fold: int
    score: float | None
    epochs_run: int
    train_samples: int
    val_samples: int
    class_weights: tuple[float, ...] | None
    sampler: Literal["weighted", "none"]
    auc_classes: int
    confusion_matrix: tuple[tuple[int, ...], ...]
    class_names: tuple[str, ...]

    def result(self) -> FoldResult:
        """Return the fold."""
        metrics = Metrics(
            loss=self.val_loss,
            acc=self.val_acc,
            **{name: getattr(self, name) for name in Metrics.model_fields if name not in {"loss", "acc"}},
        )
        own = {name: getattr(self, name) for name in FoldResult.model_fields if name in ValMetrics.model_fields}
        return FoldResult(**own, best_epoch=self.epoch, metrics=metrics)


@dataclass(frozen=True)
class Predictions:
    """What was predicted for the validation images, at the best epoch."""

    images: tuple[str, ...]
    """N paths."""
    patients: tuple[str, ...]
    labels: NDArray[np.int64]
    """(N,) 0..C-1."""
    probabilities: NDArray[np.float64]
    """(N, C); the largest is the prediction, the first of equals."""


def write_history(folder: Path, history: tuple[EpochRecord, ...]) -> None:
    """Write `train_history.json`: a list, one record an epoch."""
    records = [record.model_dump(mode="json") for record in history]
    write_text(folder / HISTORY, json.dumps(records, indent=2) + "\n")


def read_history(folder: Path) -> tuple[EpochRecord, ...]:
    """Return the records in `train_history.json`. Raises ValueError: it is no such list, or is damaged."""
    return _HISTORY.validate_json((folder / HISTORY).read_bytes())


def write_curves(folder: Path, histories: Sequence[tuple[EpochRecord, ...]]) -> None:
    """Write `training_curves.png`: what the folds, or the one, looked like over their epochs."""
    with written_whole(folder / "training_curves.png") as temporary:
        pictures.draw_curves(dict(enumerate(histories)), temporary)


def write_fold(folder: Path, result: FoldResult, best: EpochRecord, predictions: Predictions) -> None:
    """Write the predictions and the metrics of a finished fold; `val_metrics.json` last: with it the fold is complete."""
    names = result.metrics.class_names
    write_predictions(folder / PREDICTIONS, predictions, names)
    metrics_folder = folder / "metrics"
    metrics_folder.mkdir(exist_ok=True)
    write_text(metrics_folder / "val_metrics.csv", _metrics_table(result.metrics))
    with written_whole(metrics_folder / "val_metrics.png") as temporary:
        pictures.draw_metrics(result.metrics, temporary, f"fold {result.fold}, epoch {result.best_epoch}")
    shared = result.model_dump(exclude={"metrics", "best_epoch"})
    more = result.metrics.model_dump(include={"auc_classes", "confusion_matrix", "class_names"})
    content = ValMetrics.model_validate({**best.model_dump(), **shared, **more})
    write_text(metrics_folder / "val_metrics.json", content.model_dump_json(indent=2) + "\n")


def write_embeddings(
    folder: Path, embeddings: NDArray[np.float32], records: Sequence[ImageRecord], class_names: tuple[str, ...]
) -> None:
    """
    Write the (V, K) *embeddings* of the images in *records* as `embeddings_val.npy`, and before it whose they are as a CSV in
    the same order: image, accession, patient, label.
    """
    index = (folder / EMBEDDINGS).with_suffix(".csv")
    with written_whole(index) as temporary, temporary.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "accession", "patient", "label"])
        writer.writerows([each.path, each.accession, each.patient, class_names[each.label]] for each in records)
    with written_whole(folder / EMBEDDINGS) as temporary, temporary.open("wb") as stream:
        np.save(stream, embeddings, allow_pickle=False)


def read_fold(folder: Path) -> FoldResult:
    """Return the finished fold whose files are in *folder*."""
    return ValMetrics.model_validate_json((folder / "metrics" / "val_metrics.json").read_bytes()).result()


def pool(predictions: Mapping[int, Predictions]) -> tuple[Predictions, list[int]]:
    """Return the predictions of all folds, by fold at least one, sorted by image, and the fold of each."""
    parts = predictions.values()
    images = [image for part in parts for image in part.images]
    patients = [patient for part in parts for patient in part.patients]
    origin = [fold for fold, part in predictions.items() for _ in part.images]
    order = sorted(range(len(images)), key=images.__getitem__)
    pooled = Predictions(
        images=tuple(images[i] for i in order),
        patients=tuple(patients[i] for i in order),
        labels=np.concatenate([part.labels for part in parts])[order],
        probabilities=np.concatenate([part.probabilities for part in parts])[order],
    )
    return pooled, [origin[i] for i in order]


def _metrics_table(metrics: Metrics) -> str:
    """Return the numbers of *metrics* as CSV: metric, class (empty where it is of all), value (empty where undefined)."""
    rows = ["metric,class,value"]
    for name, value in metrics.model_dump(exclude={"per_class", "confusion_matrix", "class_names"}).items():
        rows.append(f"{name},,{_cell(value)}")
    for class_name, numbers in metrics.per_class.items():
        rows.extend(f"{name},{class_name},{_cell(value)}" for name, value in numbers.model_dump().items())
    return "\n".join(rows) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None else repr(value)


def write_predictions(
    path: Path, predictions: Predictions, class_names: tuple[str, ...], folds: Iterable[int] | None = None
) -> None:
    """
    Write *predictions* as CSV, labels as the label file has them, numbers so that they are read back to the bit.

    Args:
        path: of the CSV.
        predictions: N of them.
        class_names: in label order.
        folds: N folds, for a last column; None for no such column.
    """
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        print_predictions(stream, predictions, class_names, folds)


def print_predictions(
    stream: TextIO, predictions: Predictions, class_names: tuple[str, ...], folds: Iterable[int] | None = None
) -> None:
    """Print into *stream* what `write_predictions` writes."""
    last = [] if folds is None else ["fold"]
    tails: Iterable[list[int]] = ([] for _ in predictions.images) if folds is None else ([fold] for fold in folds)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*_LEADING, *(f"p_{name}" for name in class_names), *last])
    rows = zip(
        predictions.images, predictions.patients, predictions.labels, predictions.probabilities, tails, strict=True
    )
    for image, patient, label, row, tail in rows:
        prediction = class_names[int(row.argmax())]
        writer.writerow([image, patient, class_names[label], prediction, *(repr(float(p)) for p in row), *tail])


def read_predictions(path: Path, class_names: tuple[str, ...]) -> Predictions:
    """
    Return the predictions in *path*, to the bit as they were written.

    Raises:
        ValueError: It is no such table, or is damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        place = {name: label for label, name in enumerate(class_names)}
        probabilities = [[float(row[f"p_{name}"]) for name in class_names] for row in rows]
        return Predictions(
            images=tuple(row["image"] for row in rows),
            patients=tuple(row["patient"] for row in rows),
            labels=np.array([place[row["label"]] for row in rows], dtype=np.int64),
            probabilities=np.array(probabilities, dtype=np.float64).reshape(len(rows), len(class_names)),
        )
    except (KeyError, TypeError, ValueError, csv.Error) as error:  # a row too short, a column missing, half a number
        raise ValueError(f"{path}: not a table of predictions: {type(error).__name__}: {error}") from error
