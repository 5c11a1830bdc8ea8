"""Which parameters matter: PED-ANOVA and fANOVA over the trials that finished all their folds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import optuna
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial

from hpo import study as studies
from hpo.errors import SearchError
from hpo.history import understood
from hpo.study import Study
from storage.record import Record

LEAST_TRIALS = 5
"""Fewer say nothing of a parameter."""
_BEST_SHARE = 0.1
_FEWEST_BEST = 5
_SEEDS = 2**32
"""The forest takes a seed below it."""


class NoImportanceError(SearchError):
    """Nothing can be said about what matters."""


class ParameterImportance(Record):
    """How much one parameter matters beside the others, as a share of 1; None where nothing can be said."""

    name: str
    ped_anova: float | None
    """How far its values in the best trials differ from those in all trials."""
    fanova: float | None
    """How much of the values' variance it explains by itself. None too for a parameter that does not exist in every trial."""
    trials: int
    """In which it exists."""


class Importance(Record):
    """Which parameters of a study matter."""

    study: str
    trials: int
    """That finished all their folds, and of which this is said."""
    best: int
    """The best of them, which PED-ANOVA sets against all."""
    parameters: list[ParameterImportance]
    """The most important first, by PED-ANOVA."""


def importance(study: Study, trials: Sequence[FrozenTrial] | None = None) -> Importance:
    """
    Return which parameters of *study* matter. The same trials always give the same numbers.

    Of *trials*, if given, which all finished all their folds: fANOVA takes the square of their number. Else of all such.

    Source: Watanabe et al. 2023 (PED-ANOVA), which takes in parameters that exist only in some trials; Hutter et al. 2014
    (fANOVA), which does not.

    Raises:
        NoImportanceError: There are too few trials that finished all their folds, or all have the same value.
    """
    trials = understood(studies.ranking(study) if trials is None else trials, study.space)
    _check(study.name, trials)
    best = max(math.ceil(_BEST_SHARE * len(trials)), min(_FEWEST_BEST, len(trials) // 2))
    existing = {name: sum(name in trial.params for trial in trials) for name in study.space.dimensions}
    enough = [name for name, count in existing.items() if count >= LEAST_TRIALS]
    everywhere = [name for name in enough if existing[name] == len(trials)]
    ped_anova, fanova = _evaluate(trials, best, enough, everywhere, study.file.seed)
    parameters = [
        ParameterImportance(name=name, ped_anova=ped_anova.get(name), fanova=fanova.get(name), trials=count)
        for name, count in existing.items()
    ]
    parameters.sort(key=lambda each: (-_or_nothing(each.ped_anova), -_or_nothing(each.fanova), each.name))
    return Importance(study=study.name, trials=len(trials), best=best, parameters=parameters)


def _check(study: str, trials: Sequence[FrozenTrial]) -> None:
    if len(trials) < LEAST_TRIALS:
        raise NoImportanceError(
            f"study {study!r} has {len(trials)} trials that finished all their folds: expected at least {LEAST_TRIALS}"
        )
    if len({trial.value for trial in trials}) == 1:
        raise NoImportanceError(
            f"all {len(trials)} trials of study {study!r} that finished all their folds have the value"
            f" {trials[0].value}: nothing made a difference"
        )


def _evaluate(
    trials: Sequence[FrozenTrial], best: int, enough: list[str], everywhere: list[str], seed: int
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Return the shares of the parameters in *enough* by PED-ANOVA, and of those in *everywhere* by fANOVA."""
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    ped_anova = PedAnovaImportanceEvaluator(target_quantile=best / len(trials))
    fanova = FanovaImportanceEvaluator(seed=seed % _SEEDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of conditions under which the shares are None here
        by_best = _shares(ped_anova.evaluate(study, enough))
        try:
            by_variance = _shares(fanova.evaluate(study, everywhere))
        except RuntimeError:  # no tree found anything to split, as where every trial has the same parameters
            by_variance = {}
    return by_best, by_variance


def _shares(importances: Mapping[str, float]) -> Mapping[str, float]:
    """Return *importances* so that they add up to 1; none at all where all are 0, which Optuna would call equally important."""
    total = sum(importances.values())
    return {name: each / total for name, each in importances.items()} if math.isfinite(total) and total > 0 else {}


def _or_nothing(share: float | None) -> float:
    return -1.0 if share is None else share
