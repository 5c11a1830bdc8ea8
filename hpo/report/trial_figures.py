"""What trials look like: the folds of the best ones, and of the very best its predictions and its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from hpo.report import theme
from hpo.report.calibration import Bin
from trainer.records import EpochRecord, Metrics


def fold_scores(best_first: Sequence[FrozenTrial], n_folds: int) -> dict[str, Any]:
    """Return a dot for each fold of each trial, the mean of all as a line across, the best trial on top."""
    figure = theme.panels(1, 1, height=110 + 30 * len(best_first))
    names = [f"trial {trial.number}" for trial in best_first]
    for fold in range(n_folds):
        figure.add_scatter(
            x=[trial.intermediate_values[fold] for trial in best_first], y=names, mode="markers",
            name=f"fold {fold}", hovertemplate="%{y}: %{x:.4f}<extra>fold " + str(fold) + "</extra>",
            marker={
                "color": theme.SERIES[fold % len(theme.SERIES)], "symbol": theme.SYMBOLS[fold % len(theme.SYMBOLS)],
                "size": 9, "opacity": 0.8,
            },
        )  # fmt: skip
    figure.add_scatter(
        x=[trial.value for trial in best_first], y=names, mode="markers", name="mean",
        marker={"symbol": "line-ns-open", "size": 18, "color": theme.BLACK, "line": {"width": 3}},
        hovertemplate="%{y}: %{x:.4f}<extra>mean</extra>",
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title_text="balanced accuracy, adjusted")
    return theme.finished(figure)


def confusion(metrics: Metrics) -> dict[str, Any]:
    """Return the images by true and predicted class, shaded by their share of the true class."""
    names = [theme.label(name) for name in metrics.class_names]
    shares = [[count / sum(row) if sum(row) else 0.0 for count in row] for row in metrics.confusion_matrix]
    figure = theme.panels(1, 1, height=140 + 62 * len(names))
    figure.add_heatmap(
        z=shares, zmin=0, zmax=1, xgap=2, ygap=2,
        colorscale=[[0, "#F4F8FB"], [1, "#0B4F7D"]], hovertemplate="true %{y}, predicted %{x}: %{z:.1%}<extra></extra>",
        colorbar={"title": {"text": "share of the<br>true class"}, "tickformat": ".0%", "thickness": 12},
    )  # fmt: skip
    for i, row in enumerate(metrics.confusion_matrix):
        for j, count in enumerate(row):
            figure.add_annotation(
                x=j, y=i, text=f"<b>{count}</b><br>{shares[i][j]:.0%}", showarrow=False,
                font={"color": "white" if shares[i][j] > 0.5 else theme.BLACK},  # noqa: PLR2004 - the middle of the scale
            )  # fmt: skip
    ticks = {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "showgrid": False,
    }  # names that are digits are no places
    figure.update_xaxes(title_text="predicted class", **ticks)
    figure.update_yaxes(title_text="true class", autorange="reversed", automargin=True, **ticks)
    figure.update_layout(margin={"t": 40})
    return theme.finished(figure)


def reliability(of_all: Sequence[Bin], by_class: Mapping[str, Sequence[Bin]]) -> dict[str, Any]:
    """Return how often it came true over what was forecast: of the predicted class left, with intervals, of each class right."""
    figure = theme.panels(
        2, 2, height=480, row_heights=[0.78, 0.22], vertical_spacing=0.05, horizontal_spacing=0.09, shared_xaxes=True,
        specs=[[{}, {"rowspan": 2}], [{}, None]], subplot_titles=("the predicted class", "each class against the rest"),
    )  # fmt: skip
    for column in (1, 2):
        figure.add_scatter(
            x=[0, 1], y=[0, 1], mode="lines", line={"color": theme.GREY, "width": 1, "dash": "dash"}, row=1, col=column,
            name="perfect", showlegend=column == 1, hoverinfo="skip",
        )  # fmt: skip
    figure.add_scatter(
        x=[each.forecast for each in of_all], y=[each.happened for each in of_all], row=1, col=1,
        mode="lines+markers", name="predicted class", marker={"color": theme.BLACK, "size": 7},
        line={"color": theme.BLACK, "width": 1.5}, customdata=[each.count for each in of_all],
        error_y={
            "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": theme.BLACK,
            "array": [each.interval[1] - each.happened for each in of_all],
            "arrayminus": [each.happened - each.interval[0] for each in of_all],
        },
        hovertemplate="forecast %{x:.3f}, right %{y:.3f}<br>%{customdata} images<extra></extra>",
    )  # fmt: skip
    figure.add_bar(
        x=[each.forecast for each in of_all], y=[each.count for each in of_all], row=2, col=1, width=0.07,
        marker={"color": theme.PALE}, showlegend=False, hovertemplate="%{y} images<extra></extra>",
    )  # fmt: skip
    most = max(each.count for bins in by_class.values() for each in bins)
    for index, (name, bins) in enumerate(by_class.items()):
        colour = theme.SERIES[index % len(theme.SERIES)]
        figure.add_scatter(
            x=[each.forecast for each in bins], y=[each.happened for each in bins], row=1, col=2,
            mode="lines+markers", name=f"class {theme.label(name)}", customdata=[each.count for each in bins],
            marker={
                "color": colour, "symbol": theme.SYMBOLS[index % len(theme.SYMBOLS)],
                "size": [round(4 + 10 * math.sqrt(each.count / most), 1) for each in bins],
            },
            line={"color": colour, "width": 1},
            hovertemplate="forecast %{x:.3f}, true %{y:.3f}<br>%{customdata} images<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(range=[-0.02, 1.02], nticks=6)
    figure.update_yaxes(range=[-0.03, 1.03], nticks=6, row=1)
    figure.update_xaxes(showticklabels=False, row=1, col=1)
    figure.update_xaxes(title_text="forecast probability", row=2, col=1)
    figure.update_xaxes(title_text="forecast probability", row=1, col=2)
    figure.update_yaxes(title_text="share that came true", row=1, col=1)
    figure.update_yaxes(title_text="images", nticks=3, row=2, col=1)
    figure.update_layout(legend={"y": 1.09}, margin={"t": 84})
    return theme.finished(figure)


def learning_curves(histories: Mapping[int, Sequence[EpochRecord]]) -> dict[str, Any]:
    """Return loss and score of each fold over its epochs, the best epoch of each with a star."""
    figure = theme.panels(
        1, 2, height=400, horizontal_spacing=0.09,
        subplot_titles=("loss, nats (dotted: training)", "validation balanced accuracy, adjusted"),
    )  # fmt: skip
    for fold, history in histories.items():
        colour = theme.SERIES[fold % len(theme.SERIES)]
        epochs = [record.epoch for record in history]
        curves = (
            (1, [record.train_loss for record in history], "dot", "training loss"),
            (1, [record.val_loss for record in history], "solid", "validation loss"),
            (2, [record.balanced_acc_adj for record in history], "solid", "score"),
        )
        for column, values, dash, what in curves:
            figure.add_scatter(
                x=epochs, y=values, mode="lines+markers", row=1, col=column,
                line={"color": colour, "dash": dash, "width": 1.5}, marker={"size": 4}, legendgroup=f"fold {fold}",
                name=f"fold {fold}", showlegend=what == "score",
                hovertemplate=f"fold {fold}, epoch %{{x}}<br>{what} %{{y:.4f}}<extra></extra>",
            )  # fmt: skip
        best = max((record for record in history if record.best), key=lambda record: record.epoch)
        figure.add_scatter(
            x=[best.epoch], y=[best.balanced_acc_adj], mode="markers", row=1, col=2, showlegend=False,
            legendgroup=f"fold {fold}", marker={"symbol": "star", "size": 14, "color": colour},
            hovertemplate=f"fold {fold}: best epoch %{{x}}, %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="epoch", rangemode="tozero")
    figure.update_layout(legend={"y": 1.1}, margin={"t": 84})
    return theme.finished(figure)
