"""The course of the search: what was tried, and what made the difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from hpo.history import understood
from hpo.importance import NoImportanceError, importance
from hpo.report import search_figures
from hpo.report.axes import axes
from hpo.report.blocks import Block, Figure, Notice, Paragraph, Section
from hpo.report.findings import Findings

_MOST_FOR_IMPORTANCE = 300
"""fANOVA takes a minute for 1 400 trials, and the square of their number."""
_NO_VALUE = {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def course(found: Findings) -> Section:
    """Return the figures over all trials."""
    title = "The course of the search"
    if not any(trial.state.is_finished() for trial in found.trials):
        return Section("course", title, [Paragraph("No trial has finished yet.")])
    states = {trial.state for trial in found.trials}
    unranked = [word for state, word in _NO_VALUE.items() if state in states]
    below = f" Trials that were {' or '.join(unranked)} have no value to compare, and stand below." if unranked else ""
    blocks: list[Block] = [
        Figure(
            "history",
            f"The value of each trial that ran all its folds, and the best so far.{below}",
            search_figures.history(found.trials, found.ranked),
        )
    ]
    try:
        shares = importance(found.study, _thinned(found.ranked))
    except NoImportanceError as error:
        blocks.append(Notice(f"Nothing can be said about which parameters matter: {error}."))
        order: list[str] = []
    else:
        order = [each.name for each in shares.parameters]
        blocks.append(
            Figure(
                "importances",
                f"Which parameters matter, of {_how_many(shares.trials, len(found.ranked))}. PED-ANOVA:"
                f" what sets the best {shares.best} apart; fANOVA: where the variance comes from, of parameters that every trial"
                " has. With few trials both are rough.",
                search_figures.importances(shares),
            )
        )
    return Section("course", title, [*blocks, *_by_parameter(found, order)])


def _thinned(ranked: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """Return a part of the ranked trials, evenly from the best to the worst, where there are many."""
    return ranked[:: math.ceil(len(ranked) / _MOST_FOR_IMPORTANCE) or 1]


def _how_many(taken: int, ranked: int) -> str:
    return f"{taken} trials" if taken == ranked else f"{taken} trials, evenly from the ranking of {ranked}"


def _by_parameter(found: Findings, order: list[str]) -> list[Block]:
    """Return how the value goes with each parameter, those that matter most first."""
    ranked = understood(found.ranked, found.study.space)
    if not ranked:
        return []
    parameters = axes(found.study.space.dimensions, first=order)
    return [
        Figure(
            "slices",
            "The value over each parameter; the star is the best trial. Choices are spread a little so that trials do not hide"
            " each other. Where a sampler learns, it looks more often where it was good before: few points are no proof.",
            search_figures.slices(ranked, parameters),
        ),
        Figure(
            "parallel",
            "Each line is a trial that ran all its folds. A click on a name above them hides or shows its lines.",
            search_figures.parallel(ranked, parameters),
        ),
    ]
