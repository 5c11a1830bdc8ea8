"""Figures: what the numbers of a fold and the epochs of a run look like. Drawn without a display and without a global."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.records import EpochRecord, Metrics

_DPI = 110
_BARS = ("precision", "recall", "f1")


def draw_metrics(metrics: Metrics, target: Path | IO[bytes], title: str) -> None:
    """Draw the confusion matrix and the bars per class of *metrics* as a PNG into *target*."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_confusion(left, metrics)
    _draw_bars(right, metrics)
    figure.suptitle(f"{title}: balanced accuracy adjusted {_shown(metrics.balanced_acc_adj)}")
    figure.savefig(target, format="png", dpi=_DPI)


def _draw_confusion(axes: Axes, metrics: Metrics) -> None:
    """Draw counts, shaded by their share of the true class."""
    names, places = metrics.class_names, range(len(metrics.class_names))
    shares = [[count / max(sum(row), 1) for count in row] for row in metrics.confusion_matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i in places:
        for j in places:
            colour = "white" if shares[i][j] > 0.5 else "black"  # noqa: PLR2004 - the middle of the scale
            axes.text(j, i, str(metrics.confusion_matrix[i][j]), ha="center", va="center", color=colour)
    axes.set(xticks=places, yticks=places, xlabel="predicted", ylabel="true", title="images")
    axes.set_xticklabels(names)
    axes.set_yticklabels(names)


def _draw_bars(axes: Axes, metrics: Metrics) -> None:
    """Draw precision, recall and F1 of each class; a number that does not exist has no bar."""
    width = 0.8 / len(_BARS)
    for i, name in enumerate(_BARS):
        values = [getattr(metrics.per_class[c], name) for c in metrics.class_names]
        bars = [(place + (i - 1) * width, value) for place, value in enumerate(values) if value is not None]
        axes.bar([x for x, _ in bars], [value for _, value in bars], width, label=name)
    axes.set(ylim=(0, 1), xticks=range(len(metrics.class_names)), title="by class")
    axes.set_xticklabels([f"{name}\n(n={metrics.per_class[name].support})" for name in metrics.class_names])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=len(_BARS), frameon=False)


def draw_curves(histories: Mapping[int, tuple[EpochRecord, ...]], target: Path | IO[bytes]) -> None:
    """Draw loss and balanced accuracy of each fold over its epochs as a PNG into *target*; the best epoch has a dot."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for fold, history in histories.items():
        colour = f"C{fold % 10}"
        epochs = [record.epoch for record in history]
        # Dots, since a line through one epoch cannot be seen.
        losses.plot(epochs, [record.train_loss for record in history], color=colour, linestyle=":", marker=".")
        losses.plot(
            epochs, [_number(record.val_loss) for record in history], color=colour, marker=".", label=f"fold {fold}"
        )
        scores.plot(epochs, [_number(record.balanced_acc_adj) for record in history], color=colour)
        best = max((record for record in history if record.best), key=lambda record: record.epoch)
        scores.plot([best.epoch], [_number(best.balanced_acc_adj)], color=colour, marker="o")
    losses.set(xlabel="epoch", ylabel="nats", title="loss (dotted: training)")
    scores.set(xlabel="epoch", title="validation balanced accuracy, adjusted for chance")
    losses.legend(frameon=False)
    figure.savefig(target, format="png", dpi=_DPI)


def _number(value: float | None) -> float:
    """Return *value*, or NaN where it does not exist: a gap in a curve."""
    return float("nan") if value is None else value


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
