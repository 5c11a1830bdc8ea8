from __future__ import annotations

import json

from hpo.dashboard.study_note import TOP, DataCounts, fold_plot
from tests.exhibition import folds_csv, trial


def test_data_are_counted_and_not_named() -> None:
    """Images, patients, labels and folds; a set-aside image is in no fold."""
    counts = DataCounts.of(folds_csv(6) + "secret-x,secret-x,1,\n")
    assert (counts.images, counts.patients) == (13, 7)
    assert counts.labels == {"1": 5, "2": 4, "3": 2, "4": 2}
    assert counts.folds == {"0": 4, "1": 4, "2": 4}
    assert "secret" not in repr(counts)


def test_the_plot_shows_every_fold_of_the_best_trials() -> None:
    """In order of rank, a dot each, and their mean."""
    ranked = [trial(number) for number in range(0, 80, 4)]
    for number, each in enumerate(ranked):
        each.number = number
    figure = fold_plot(ranked)
    folds, means = figure["data"]
    assert means["x"] == [f"trial {number}" for number in range(TOP)]
    assert folds["y"][:3] == list(ranked[0].intermediate_values.values())
    assert means["y"][0] == sum(folds["y"][:3]) / 3
    assert len(folds["y"]) == 3 * TOP
    assert json.loads(json.dumps(figure)) == figure
