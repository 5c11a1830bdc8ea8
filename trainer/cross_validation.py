"""From k folds to the number that is reported: the mean over the folds of balanced accuracy adjusted for chance."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from trainer.artifacts import (
    PREDICTIONS,
    pool,
    read_fold,
    read_history,
    read_predictions,
    write_curves,
    write_predictions,
)
from trainer.config import Strict, TrainConfig
from trainer.data.folds import Folds
from trainer.data.records import Dataset
from trainer.errors import TrainerError
from trainer.files import write_text
from trainer.fit import fit
from trainer.metrics import evaluate
from trainer.protocols import Listener, RunFolder, StopSignal
from trainer.records import FoldResult, Metrics
from trainer.resolve import Compute
from trainer.seeds import Seeds


@dataclass(frozen=True)
class CrossValidation:
    """All folds of a configuration."""

    value: float | None
    """The objective: mean over the folds of balanced accuracy adjusted, each at its best epoch; None if one has none."""
    folds: tuple[FoldResult, ...]
    pooled: Metrics
    """Over all images, each predicted by the fold that did not train on it."""


class CvSummary(Strict):
    """The content of `cv_summary.json`."""

    value: float | None
    """The objective."""
    n_folds: int
    folds: tuple[FoldResult, ...]
    mean: dict[str, float | None]
    """Of every metric over the folds where it exists; those of a class as `per_class.<class>.<metric>`."""
    std: dict[str, float | None]
    """Standard deviation of the same, with n - 1; None where the metric exists in fewer than two folds."""
    pooled: Metrics


def cross_validate(
    config: TrainConfig,
    dataset: Dataset,
    folds: Folds,
    seeds: Seeds,
    *,
    compute: Compute,
    folder: RunFolder,
    listener: Listener,
    stop: StopSignal,
) -> CrossValidation:
    """
    Train *config* on every fold that is not published yet and return all of them.

    What is returned and summarised is read from the published files, so that a run that was interrupted gives the same
    as one that was not.

    Args:
        config: What is trained.
        dataset: All images.
        folds: The same for every configuration of a study.
        seeds: Of the trial.
        compute: Where and how.
        folder: Where the files go.
        listener: Told of each epoch and of each fold, which it publishes.
        stop: Asked between steps.

    Raises:
        StopRequestedError: Asked to stop.
        DivergedError: The loss is not finite.
        OutOfMemoryError: The device has too little memory.
        InputError: Configuration, weights or checkpoints do not fit.
    """
    for fold in range(folds.n_folds):
        if folder.published(fold) is None:
            result = fit(
                config,
                dataset,
                folds.split(fold),
                seeds.fold(fold),
                compute=compute,
                folder=folder.fold(fold),
                listener=listener,
                stop=stop,
            )
            listener.fold_finished(result)
    published = [_published(folder, fold) for fold in range(folds.n_folds)]
    return _summarise(published, dataset.class_names, folder.path)


def _published(folder: RunFolder, fold: int) -> Path:
    """Return the folder of a published fold."""
    path = folder.published(fold)
    if path is None:
        raise TrainerError(f"fold {fold} is finished, but the listener did not publish it")
    return path


def _summarise(published: list[Path], class_names: tuple[str, ...], path: Path) -> CrossValidation:
    """Write what concerns all folds into *path* and return it."""
    results = tuple(read_fold(folder) for folder in published)
    together, origin = pool(
        {fold: read_predictions(folder / PREDICTIONS, class_names) for fold, folder in enumerate(published)}
    )
    write_predictions(path / "oof_predictions.csv", together, class_names, folds=origin)
    write_curves(path, [read_history(folder) for folder in published])
    pooled = evaluate(together.labels, together.probabilities, class_names)
    value = objective(results)
    mean, std = spread([result.metrics for result in results])
    summary = CvSummary(value=value, n_folds=len(results), folds=results, mean=mean, std=std, pooled=pooled)
    write_text(path / "cv_summary.json", summary.model_dump_json(indent=2) + "\n")
    return CrossValidation(value=value, folds=results, pooled=pooled)


def objective(results: tuple[FoldResult, ...]) -> float | None:
    """Return the mean of the folds' scores; None where one of them does not exist, since a mean of fewer is another number."""
    scores = [result.score for result in results if result.score is not None]
    return statistics.fmean(scores) if len(scores) == len(results) else None


def spread(metrics: list[Metrics]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Return mean and standard deviation (n - 1) of every number in *metrics*, over those where it exists."""
    rows = [_numbers(each) for each in metrics]
    defined = {name: [value for row in rows if (value := row[name]) is not None] for name in rows[0]}
    mean = {name: statistics.fmean(values) if values else None for name, values in defined.items()}
    std = {name: statistics.stdev(values) if len(values) > 1 else None for name, values in defined.items()}
    return mean, std


def _numbers(metrics: Metrics) -> dict[str, float | None]:
    """Return every number of *metrics* by name, those of a class as `per_class.<class>.<metric>`."""
    overall = metrics.model_dump(exclude={"per_class", "confusion_matrix", "class_names"})
    by_class = {
        f"per_class.{class_name}.{name}": value
        for class_name, numbers in metrics.per_class.items()
        for name, value in numbers.model_dump().items()
    }
    return {**overall, **by_class}
