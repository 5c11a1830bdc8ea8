"""The best trial, what its value is and what it is not; and the trials after it."""

from __future__ import annotations

import math
import statistics

from optuna.trial import FrozenTrial, TrialState

from hpo.plateau import better_beyond_noise
from hpo.report import trial_figures
from hpo.report.blocks import Block, Facts, Figure, Notice, Paragraph, Section, Table
from hpo.report.findings import Findings
from hpo.report.outcomes import endings_in_words
from hpo.report.wording import NOTHING, count, moment, score, setting
from hpo.warm_start import Origin

_TOP = 10


def winner(found: Findings) -> Section:
    """Return the best trial, or that there is none."""
    title = "The best trial"
    if not found.ranked:
        return Section("best", title, [Notice("No trial has finished all its folds yet, so none is the best.")])
    best = found.ranked[0]
    scores = _scores(best, found.n_folds)
    facts = [
        ("trial", f"{best.number}{_origin(best)}"),
        (
            "value",
            f"{score(best.value)} ± {score(_sd(scores))} (mean and standard deviation over {count(len(scores), 'fold')})",
        ),
        ("folds", ", ".join(f"{score(each)} (fold {fold})" for fold, each in enumerate(scores))),
        ("finished", moment(best.datetime_complete)),
        ("attempts", endings_in_words(found.attempts.get(best.number, []))),
    ]
    table = Table(
        "Its parameters.",
        ("parameter", "value"),
        [(name, setting(value)) for name, value in best.params.items()],
        words=frozenset({0, 1}),
    )
    return Section("best", title, [Facts(facts), _selection(found), table])


def _origin(trial: FrozenTrial) -> str:
    if "from" not in trial.user_attrs:
        return ""
    origin = Origin.model_validate(trial.user_attrs["from"])
    return f", which is trial {origin.number} of study {origin.study}, taken over"


def _selection(found: Findings) -> Notice:
    """Return why the value of the best of many is not what it looks like."""
    best, *others = found.ranked
    tried = sum(trial.state in {TrialState.COMPLETE, TrialState.PRUNED} for trial in found.trials)
    theirs = [other for other in others if not better_beyond_noise(best.intermediate_values, other.intermediate_values)]
    if theirs:
        close = f" {len(theirs)} of the {len(others)} others ranked cannot be told from it by the noise of the folds."
    else:
        close = f" It lies above the other {len(others)} ranked by more than the noise of the folds." if others else ""
    return Notice(
        f"The value is the largest of {count(tried, 'trial')} that were compared on the same folds, at the epochs that were the"
        " best on the same images. The best of many looks better than it is, the more so the more are tried and the more"
        f" the folds differ.{close} What the configuration is worth on other patients, only images can tell that took no part in"
        " the search."
    )


def top_trials(found: Findings) -> Section:
    """Return the first trials of the ranking with the spread of their folds."""
    title = "The top trials"
    top = found.ranked[:_TOP]
    if not top:
        return Section("top", title, [Paragraph("None has finished all its folds yet.")])
    folds = range(found.n_folds)
    rows = [
        (
            str(rank),
            str(trial.number),
            score(trial.value),
            score(_sd(_scores(trial, found.n_folds))),
            "" if trial is top[0] else _behind(top[0], trial, found.n_folds),
            *(score(trial.intermediate_values[fold]) for fold in folds),
            str(len(found.attempts.get(trial.number, []))),
        )
        for rank, trial in enumerate(top, start=1)
    ]
    heading = ("rank", "trial", "value", "sd", "to the best", *(f"fold {fold}" for fold in folds), "attempts")
    caption = (
        "Value: mean over the folds. To the best: mean difference to the best trial on the same folds ± its standard error;"
        " where that is not well below zero, the folds do not tell the two apart."
    )
    blocks: list[Block] = [
        Figure(
            "folds",
            "The scores of each fold, and their mean (line). A fold that lies low in every trial is a hard one; what matters is"
            " how trials compare on the same fold.",
            trial_figures.fold_scores(top, found.n_folds),
        ),
        Table(caption, heading, rows, words=frozenset()),
        _parameters(top),
    ]
    return Section("top", title, blocks)


def _parameters(top: list[FrozenTrial]) -> Table:
    names = list(dict.fromkeys(name for trial in top for name in trial.params))
    rows = [
        (str(trial.number), *(setting(trial.params[name]) if name in trial.params else NOTHING for name in names))
        for trial in top
    ]
    return Table("Their parameters.", ("trial", *names), rows, words=frozenset())


def _scores(trial: FrozenTrial, n_folds: int) -> list[float]:
    return [trial.intermediate_values[fold] for fold in range(n_folds)]


def _sd(scores: list[float]) -> float | None:
    return statistics.stdev(scores) if len(scores) > 1 else None


def _behind(best: FrozenTrial, trial: FrozenTrial, n_folds: int) -> str:
    """Return the mean difference of *trial* to the best one, fold by fold, with its standard error."""
    gaps = [
        score - best_score for score, best_score in zip(_scores(trial, n_folds), _scores(best, n_folds), strict=True)
    ]
    if len(gaps) < 2:  # noqa: PLR2004 - one has no spread
        return NOTHING
    return f"{score(statistics.fmean(gaps))} ± {score(statistics.stdev(gaps) / math.sqrt(len(gaps)))}"
