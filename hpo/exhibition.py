"""
What there is to show of a finished trial, made from its folder: record, learning curves, confusion matrix, predictions.

For other eyes: pseudonyms stand in the place of images, accession numbers and patients, and of a folder's path only its name
is said.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from storage.exhibits import CONFUSION, CURVES, RECORD, TABLE
from storage.record import TrialRecord
from storage.tree import TrialFolder
from trainer import pictures
from trainer.artifacts import (
    EMBEDDINGS,
    HISTORY,
    PREDICTIONS,
    Predictions,
    pool,
    print_predictions,
    read_history,
    read_predictions,
)
from trainer.data.naming import Naming
from trainer.metrics import evaluate

_NAME_SOMEBODY = (PREDICTIONS, TABLE, PurePath(EMBEDDINGS).with_suffix(".csv").name)
"""Files whose hash would prove a guess at the names in them."""


@dataclass(frozen=True)
class Folders:
    """Where the files of a trial lie."""

    own: Path
    """Those of the whole trial."""
    finished: Mapping[int, Path]
    """Those of each finished fold."""
    begun: Mapping[int, Path]
    """Those of folds that were begun and not finished."""

    @classmethod
    def of(cls, trial: TrialFolder, own: Path, n_folds: int, finished: set[int]) -> Folders:
        """Return the folders of a trial, with those that are really there; *own* is its attempt's before it is settled."""
        places = {fold: trial.fold(fold) for fold in sorted(finished)}
        return cls(
            own,
            {fold: place for fold, place in places.items() if (place / PREDICTIONS).is_file()},
            {fold: own / f"fold_{fold}" for fold in range(n_folds) if fold not in finished},
        )


def contents(record: TrialRecord, folders: Folders, class_names: tuple[str, ...], naming: Naming) -> dict[str, bytes]:
    """
    Return what there is to show, by file.

    Args:
        record: As others may read it.
        folders: Of the trial.
        class_names: In label order.
        naming: What tables call images and patients.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is damaged.
    """
    found = {}
    curves = _curves(folders)
    if curves is not None:
        found[CURVES] = curves
    if folders.finished:
        pooled, origin = pool(
            {
                fold: _named(read_predictions(path / PREDICTIONS, class_names), naming)
                for fold, path in folders.finished.items()
            }
        )
        if not pooled.images or not np.isfinite(pooled.probabilities).all():
            raise ValueError(f"{next(iter(folders.finished.values())).parent}: no predictions, or not all are numbers")
        found[CONFUSION] = _confusion(pooled, class_names, record, len(folders.finished))
        table = io.StringIO()
        print_predictions(table, pooled, class_names, origin)
        found[TABLE] = table.getvalue().encode()
    found[RECORD] = f"{record.model_dump_json(indent=2)}\n".encode()
    return found


def public(record: TrialRecord, disguise: Callable[[str], str]) -> TrialRecord:
    """Return *record* as others may read it: *disguise* says its words, and no hash of a file that names somebody is told."""
    distributions = {
        name: json.dumps(shown(json.loads(each), disguise)) if isinstance(each, str) else each
        for name, each in record.distributions.items()
    }
    return record.model_copy(
        update={
            "reason": None if record.reason is None else disguise(record.reason),
            "params": shown(record.params, disguise),
            "distributions": distributions,
            "config": shown(record.config, disguise),
            "artifacts": [file for file in record.artifacts if PurePath(file.name).name not in _NAME_SOMEBODY],
        }
    )


def shown(value: Any, disguise: Callable[[str], str]) -> Any:
    """Return a setting, or what holds some, as others may read it: of an absolute path its name, and words by *disguise*."""
    if isinstance(value, dict):
        return {name: shown(each, disguise) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown(each, disguise) for each in value]
    if not isinstance(value, str):
        return value
    return disguise(f"…/{PurePath(value).name}" if PurePath(value).is_absolute() else value)


def _named(predictions: Predictions, naming: Naming) -> Predictions:
    """Return *predictions* with pseudonyms; they come before the sorting, or the order would tell who is who."""
    return replace(
        predictions,
        images=tuple(map(naming.path, predictions.images)),
        patients=tuple(map(naming.patient, predictions.patients)),
    )


def _curves(folders: Folders) -> bytes | None:
    """Return the learning curves of every fold that was begun, as a picture; None where there is none."""
    drawn = folders.own / CURVES
    if drawn.is_file():
        return drawn.read_bytes()
    places = {**folders.finished, **folders.begun}
    histories = {fold: read_history(places[fold]) for fold in sorted(places) if (places[fold] / HISTORY).is_file()}
    if not histories:
        return None
    picture = io.BytesIO()
    pictures.draw_curves(histories, picture)
    return picture.getvalue()


def _confusion(pooled: Predictions, class_names: tuple[str, ...], record: TrialRecord, n_folds: int) -> bytes:
    """Return the confusion matrix over all images that were predicted, as a picture."""
    asked = len(record.fold_scores)
    folds = f"all {asked} folds" if n_folds == asked else f"{n_folds} of {asked} folds, {record.state}"
    picture = io.BytesIO()
    metrics = evaluate(pooled.labels, pooled.probabilities, class_names)
    pictures.draw_metrics(metrics, picture, f"trial {record.number}, {folds} pooled")
    return picture.getvalue()
