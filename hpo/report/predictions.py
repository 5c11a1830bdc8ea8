"""What the best trial predicts: confusion matrix, numbers by class, calibration, learning curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from hpo.report import trial_figures
from hpo.report.blocks import Block, Facts, Figure, Notice, Paragraph, Section, Table
from hpo.report.calibration import Calibration, calibration, reliability
from hpo.report.findings import Findings
from hpo.report.trial_files import Pooled, TrialFiles, read_files
from hpo.report.wording import count, score
from trainer.config import TrainConfig
from trainer.records import EpochRecord, FoldResult

_METRICS = {
    "balanced_acc_adj": "balanced accuracy, adjusted for chance",
    "balanced_acc": "balanced accuracy",
    "acc": "accuracy",
    "kappa_quadratic": "Cohen's kappa, quadratic weights",
    "auc_ovr": "AUC, one class against the rest",
    "auc_ovo": "AUC, over pairs of classes",
    "loss": "cross-entropy, nats",
}


def predictions(found: Findings) -> Section:
    """Return what the best trial predicts for images that it did not train on, as far as its files are there."""
    title = "What the best trial predicts"
    if not found.ranked:
        return Section("predictions", title, [Paragraph("There is no best trial yet.")])
    best = found.ranked[0]
    files = read_files(found.study, best)
    blocks: list[Block] = []
    if files.missing:
        what = "; ".join(files.missing)
        blocks.append(
            Notice(
                f"Of trial {best.number} some files are missing, and with them what this section shows of them: {what}."
            )
        )
    if files.pooled is not None:
        blocks += _worth(files.pooled)
        blocks += _calibration(files.pooled, _leanings(files.results, found.study.space.configure(best.params)))
    blocks += _learning(files)
    return Section("predictions", title, blocks)


def _worth(pooled: Pooled) -> list[Block]:
    """Return how right the predictions are, over all images and by class."""
    metrics = pooled.metrics
    images, patients = len(pooled.predictions.labels), len(set(pooled.predictions.patients))
    overall = [(name, *_over_folds(pooled, field), score(getattr(metrics, field))) for field, name in _METRICS.items()]
    by_class = [
        (name, score(each.precision), score(each.recall), score(each.f1), score(each.loss), str(each.support))
        for name, each in metrics.per_class.items()
    ]
    return [
        Paragraph(
            f"Every image is predicted once, by the network of the fold that did not train on it: {count(images, 'image')} of"
            f" {count(patients, 'patient')}, pooled."
        ),
        Figure("confusion", "Images by true and predicted class.", trial_figures.confusion(metrics)),
        Table(
            "Each class against the rest, pooled.",
            ("class", "precision", "recall", "F1", "cross-entropy", "images"),
            by_class,
        ),
        Table(
            "Over all classes. The study's value is the mean over the folds in the first row; pooled over all images it is a"
            " little different.",
            ("metric", "mean of folds", "sd", "pooled"),
            overall,
        ),
    ]


def _over_folds(pooled: Pooled, field: str) -> tuple[str, str]:
    """Return mean and standard deviation of a metric over the folds where it exists."""
    values = [value for metrics in pooled.by_fold if (value := getattr(metrics, field)) is not None]
    mean = statistics.fmean(values) if values else None
    return score(mean), score(statistics.stdev(values) if len(values) > 1 else None)


def _leanings(results: Sequence[FoldResult], config: TrainConfig) -> str:
    """Return what makes the probabilities of the trial other than the archive's own, in words; empty where nothing does."""
    balanced = []
    if any(result.class_weights is not None for result in results):
        balanced.append("weighted its classes")
    if any(result.sampler == "weighted" for result in results):
        balanced.append("drew its classes equally often")
    softened = []
    if config.label_smoothing > 0:
        softened.append("smoothed its labels")
    if config.loss == "ordinal":
        softened.append("gave neighbouring grades a share")
    said = ""
    if balanced:
        said += f" The trial {' and '.join(balanced)}: its probabilities are those of classes of equal size, not of this archive."
    if softened:
        said += f" It {' and '.join(softened)}, and so never learnt to be sure."
    return said


def _calibration(pooled: Pooled, leanings: str) -> list[Block]:
    """Return whether the probabilities are what they say."""
    labels, probabilities = pooled.predictions.labels, pooled.predictions.probabilities
    found: Calibration = calibration(labels, probabilities)
    by_class = {
        name: reliability(labels == label, probabilities[:, label])
        for label, name in enumerate(pooled.metrics.class_names)
    }
    return [
        Figure(
            "reliability",
            f"Calibration, in ten bins of equal width. On the dashed line, what was forecast came true as often as it was"
            f" forecast. Bars: 95 % intervals (Wilson), as if images were independent, which those of one patient are"
            f" not; grey: images in each bin. Right: the larger the mark, the more images.{leanings}",
            trial_figures.reliability(found.bins, by_class),
        ),
        Facts(
            [
                (
                    "calibration error",
                    f"{score(found.error)} expected (0 is perfect; of the predicted class, over those bins)",
                ),
                ("Brier score", f"{score(found.brier)}, from 0 (perfect) to 2, over all classes"),
                (
                    "of shares alone",
                    f"{score(found.brier_of_shares)}: the Brier score of who knows how frequent classes are, and no image",
                ),
            ]
        ),
    ]


def _learning(files: TrialFiles) -> list[Block]:
    """Return how the folds learnt."""
    histories: Mapping[int, Sequence[EpochRecord]] = {
        fold: history for fold, history in files.histories.items() if any(record.best for record in history)
    }
    if not histories:
        return []
    best = [max(record.epoch for record in history if record.best) for history in histories.values()]
    at_the_end = [fold for fold, each in zip(histories, best, strict=True) if each == histories[fold][-1].epoch]
    end = (
        f" In {count(len(at_the_end), 'fold')} the last epoch was the best: more might do better." if at_the_end else ""
    )
    return [
        Figure(
            "learning",
            f"Learning curves of its folds; stars: best epochs ({', '.join(map(str, best))}), which give the scores."
            f"{end}",
            trial_figures.learning_curves(histories),
        )
    ]
