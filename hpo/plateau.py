"""When a search gets no better: no improvement beyond the noise of the folds in so many trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState


def plateaued(trials: Sequence[FrozenTrial], patience: int) -> bool:
    """
    Return whether the last *patience* finished trials brought no improvement over the best one before them.

    Trials are taken in the order in which they ended; those that were pruned or failed are no improvement. Those of another
    study may be the best to beat, and are not counted: it was another search that ended with them.
    """
    finished = sorted(
        (trial for trial in trials if trial.state.is_finished() and trial.datetime_complete is not None),
        key=lambda trial: (trial.datetime_complete, trial.number),
    )
    best: dict[int, float] | None = None
    without = 0
    for trial in finished:
        scores = trial.intermediate_values if trial.state == TrialState.COMPLETE else {}
        if scores and (best is None or better_beyond_noise(scores, best)):
            best, without = scores, 0
        elif "from" not in trial.user_attrs:
            without += 1
    return best is not None and without >= patience


def better_beyond_noise(scores: dict[int, float], than: dict[int, float]) -> bool:
    """
    Return whether *scores* are higher by more than one standard error of their mean difference, fold by fold.

    The folds' own difficulty is in both and goes out of the difference. With one fold alone any gain counts.
    Source: the standard error of a mean of paired differences, sd / sqrt(n).
    """
    gains = [scores[fold] - than[fold] for fold in sorted(scores.keys() & than.keys())]
    if not gains:
        return False
    noise = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return statistics.fmean(gains) > noise
