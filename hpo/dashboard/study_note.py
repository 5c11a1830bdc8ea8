"""What the dashboard says of a study as a whole: a note in Markdown, and a plot of what its best trials reached on each fold."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial

from hpo.status import Status
from hpo.study import Study
from hpo.tables import budget_line, duration

TOP = 15
"""How many trials the plot shows."""
OBJECTIVE = "balanced accuracy, adjusted for chance"
"""What a trial's value is the mean of."""

_BLUE, _ORANGE, _GREY = "rgb(39, 126, 170)", "rgb(222, 120, 31)", "rgba(128, 128, 128, 0.35)"


@dataclass(frozen=True)
class DataCounts:
    """How much data a study is on. Counts only: no image and no patient is named on the dashboard."""

    images: int
    patients: int
    labels: Mapping[str, int]
    """Images of each label, in the order of the labels."""
    folds: Mapping[str, int]
    """Images that each fold validates."""

    @classmethod
    def of(cls, folds_csv: str) -> DataCounts:
        """Return the counts of a study's `folds.csv`."""
        rows = list(csv.DictReader(io.StringIO(folds_csv)))
        labels = Counter(row["label"] for row in rows)
        folds = Counter(row["fold"] for row in rows if row["fold"])
        return cls(
            images=len(rows),
            patients=len({row["patient"] for row in rows}),
            labels={label: labels[label] for label in sorted(labels)},
            folds={fold: folds[fold] for fold in sorted(folds, key=int)},
        )


def study_note(
    study: Study, counts: DataCounts, status: Status, ranked: Sequence[FrozenTrial], rejected: Mapping[str, int] | None
) -> str:
    """
    Return the note of a study, in Markdown.

    Args:
        study: The study.
        counts: How much data it is on.
        status: How far it is.
        ranked: Its trials with all their folds, the best first.
        rejected: Images and labels that are not used, by code; None where nobody here can say.
    """
    file, registration = study.file, study.registration
    pruning = f"between folds {file.pruning.by_folds}, between epochs {file.pruning.by_epochs}"
    rows = {
        "State": _state(status),
        "Budget": budget_line(status.budget),
        "Trials": _listed(status.trials) or "none yet",
        "Best": _best(ranked),
        "Data": f"{counts.images} images of {counts.patients} patients",
        "Labels": ", ".join(f"{label}: {count}" for label, count in counts.labels.items()),
        "Folds": f"{len(counts.folds)}, no patient in two of them; {', '.join(map(str, counts.folds.values()))} images",
        "Not used": "unknown here" if rejected is None else _listed(rejected) or "nothing was left out",
        "Search": f"{', '.join(file.search)}; sampler {file.sampler.name}, pruning {pruning}, seed {file.seed}",
        "Hashes": f"data `{registration.data_hash[:12]}`, folds `{registration.folds_hash[:12]}`",
        "Folder": f"`{study.folder.path}`",
    }
    table = "\n".join(f"| **{name}** | {_cell(text)} |" for name, text in rows.items())
    at_work = "".join(
        f"\n* `{worker.name}` on {worker.device}: trial {worker.trial}"
        f"{'' if worker.fold is None else f', fold {worker.fold}, epoch {worker.epoch}'}"
        for worker in status.workers
    )
    heading = f"### {study.name}\n\n| | |\n| --- | --- |\n{table}\n"
    return f"{heading}\n**At work**\n{at_work}\n" if at_work else heading


def _state(status: Status) -> str:
    left = "" if status.seconds_left is None else f", about {duration(status.seconds_left)} left"
    workers = len(status.workers)
    at_work = "" if not workers else f", {workers} worker{'' if workers == 1 else 's'} at work"
    return f"**{status.state}**{left}{at_work}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def _best(ranked: Sequence[FrozenTrial]) -> str:
    if not ranked:
        return "no trial has finished all its folds yet"
    scores = _scores(ranked[0])
    spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
    folds = ", ".join(f"{score:.4f}" for score in scores)
    return f"trial {ranked[0].number}: {statistics.fmean(scores):.4f}{spread} {OBJECTIVE} (folds {folds})"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _cell(text: str) -> str:
    """Return *text* as a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _scores(trial: FrozenTrial) -> list[float]:
    return [score for _, score in sorted(trial.intermediate_values.items())]


def fold_plot(ranked: Sequence[FrozenTrial]) -> dict[str, Any]:
    """
    Return a Plotly figure of the best of *ranked*: a dot for each fold's score, and a line at their mean.

    It is made of plain values: to load Plotly for it would take longer than everything else that the dashboard does.
    """
    top = ranked[:TOP]
    names = [f"trial {trial.number}" for trial in top]
    dots = [
        {"x": name, "y": score, "text": f"fold {fold}"}
        for name, trial in zip(names, top, strict=True)
        for fold, score in sorted(trial.intermediate_values.items())
    ]
    folds = {
        "type": "scatter",
        "mode": "markers",
        "name": "fold",
        "x": [dot["x"] for dot in dots],
        "y": [dot["y"] for dot in dots],
        "text": [dot["text"] for dot in dots],
        "hovertemplate": "%{x}, %{text}: %{y:.4f}<extra></extra>",
        "marker": {"color": _BLUE, "size": 8, "opacity": 0.75},
    }
    means = {
        "type": "scatter",
        "mode": "markers",
        "name": "mean",
        "x": names,
        "y": [statistics.fmean(_scores(trial)) for trial in top],
        "hovertemplate": "%{x}, mean: %{y:.4f}<extra></extra>",
        "marker": {"symbol": "line-ew", "size": 22, "line": {"width": 3, "color": _ORANGE}},
    }
    return {"data": [folds, means], "layout": _layout(f"Fold scores of the best {len(top)} trials")}


def _layout(title: str) -> dict[str, Any]:
    axis = {"gridcolor": _GREY, "linecolor": _GREY, "zerolinecolor": _GREY}
    return {
        "title": {"text": title},
        "margin": {"l": 60, "r": 20, "t": 60, "b": 80},
        "xaxis": {**axis, "type": "category", "showgrid": False},
        "yaxis": {**axis, "title": {"text": OBJECTIVE}},
        "paper_bgcolor": "rgba(0, 0, 0, 0)",  # the page is light or dark
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "font": {"color": "rgb(128, 128, 128)"},
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
    }
