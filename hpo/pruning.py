"""
When to give a trial up: between folds by its scores, inside a fold by its validation curve.

Folds differ more than configurations do, so trials are only ever compared on the same folds. Nothing here reads or writes:
what a rule says follows from the curves that it is handed.

Not covered: where the number of epochs is searched for, trials are compared after as many epochs, whatever share of their
schedule that is.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, quantiles
from typing import Literal, Protocol

Mode = Literal["off", "on", "auto"]

_FEWEST_COMPLETE = 4
"""Complete trials before anything is compared with them."""
_FEWEST_CURVES = 5
"""Curves before a quarter of them means anything."""
_LEAST_CHANCES = 0.4
"""Least chance of becoming the best, over the folds together: the more of them, the more often a trial is looked at."""
_PARTS_AUTO = 3
_PARTS_ON = 4
_USUAL_SD = 0.05
"""What a spread is believed to be before any was seen. Folds of 65 images gave .045 to .048; larger ones have less, and until
that has shown itself, less is given up."""
_USUAL_WEIGHT = 2
"""Observations that this belief counts as."""


@dataclass(frozen=True)
class Curves:
    """What is known of a trial: one curve a fold."""

    number: int
    complete: bool
    """Whether all folds are finished, and the trial with them: only then can it be the best."""
    scores: Mapping[int, float]
    """The score of each finished fold: balanced accuracy adjusted at its best epoch."""
    epochs: Mapping[int, tuple[float | None, ...]]
    """For each fold balanced accuracy adjusted after each epoch so far, on its validation images; None where undefined. A fold
    that was trained elsewhere may have a score and no curve."""


class BetweenFolds(Protocol):
    """A rule that looks after each fold but the last."""

    def after_fold(self, mine: Curves, others: Sequence[Curves]) -> str | None:
        """Return why to give *mine* up, or None."""
        ...


class InsideFold(Protocol):
    """A rule that looks after some epochs of a fold."""

    def looks_after_epoch(self, fold: int, epoch: int) -> bool:
        """Return whether there is anything to ask then."""
        ...

    def after_epoch(self, mine: Curves, others: Sequence[Curves], fold: int, epoch: int) -> str | None:
        """Return why to give *mine* up, or None."""
        ...


@dataclass(frozen=True)
class Pruning:
    """By which rules trials of a study are given up: made once from the study."""

    n_folds: int
    n_epochs: int
    """Of the study's base configuration."""
    between: BetweenFolds | None
    """None gives nothing up between folds."""
    inside: InsideFold | None
    """None gives nothing up inside a fold."""

    def looks_after_epoch(self, fold: int, epoch: int) -> bool:
        """Return whether `after_epoch` could say anything then: the others' curves need not be read after every epoch."""
        return self.inside is not None and epoch < self.n_epochs - 1 and self.inside.looks_after_epoch(fold, epoch)

    def after_epoch(self, mine: Curves, others: Sequence[Curves], fold: int, epoch: int) -> str | None:
        """
        Return why to give *mine* up in the middle of a fold, in one line for people; None to go on.

        Args:
            mine: The trial, with the curve of *fold* so far.
            others: The study's trials by number, whatever became of them; the trial itself among them does not count.
            fold: The one that is being trained, from 0.
            epoch: The one that is over, from 0. Not the fold's last, at which an early stop may make it: then there is nothing to
                save, and after the last fold a result to lose.
        """
        if self.inside is None or not self.looks_after_epoch(fold, epoch):
            return None
        reason = self.inside.after_epoch(mine, _without(others, mine), fold, epoch)
        return reason and f"after epoch {epoch + 1} of fold {fold}: {reason}"

    def after_fold(self, mine: Curves, others: Sequence[Curves], fold: int) -> str | None:
        """
        Return why to give *mine* up before its next fold, in one line for people; None to go on. Of the last fold always None.

        Args:
            mine: The trial, with the score of *fold*.
            others: As in `after_epoch`.
            fold: The one that is finished, from 0.
        """
        if self.between is None or fold >= self.n_folds - 1 or not 0 < len(mine.scores) < self.n_folds:
            return None
        reason = self.between.after_fold(mine, _without(others, mine))
        return reason and f"after fold {fold}: {reason}"


def make_pruning(folds: Mode, epochs: Mode, *, n_folds: int, n_epochs: int) -> Pruning:
    """
    Return the rules of a study.

    Args:
        folds: Between folds. on is the signed-rank test against the best trial, auto the forecast.
        epochs: Inside a fold. on gives up the lower quarter of the first fold's curves, auto is the forecast.
        n_folds: Of the study.
        n_epochs: Of its base configuration.
    """
    forecast = Forecast(n_folds, parts(n_epochs, _PARTS_AUTO), _LEAST_CHANCES / n_folds)
    between: dict[Mode, BetweenFolds | None] = {
        "off": None,
        "on": SignedRanks(n_folds, fold_threshold(n_folds)),
        "auto": forecast,
    }
    inside: dict[Mode, InsideFold | None] = {
        "off": None,
        "on": LowerShare(0.25, parts(n_epochs, _PARTS_ON)),
        "auto": forecast,
    }
    return Pruning(n_folds, n_epochs, between[folds], inside[epochs])


def parts(n_epochs: int, n_parts: int) -> frozenset[int]:
    """Return the epochs, from 0, after which one of *n_parts* about equal parts of a fold is over, without the last."""
    return frozenset(math.ceil(part * n_epochs / n_parts) - 1 for part in range(1, n_parts)) - {n_epochs - 1}


@dataclass(frozen=True)
class SignedRanks:
    """Gives a trial up that lost to the best one on the folds of both, by the one-sided Wilcoxon signed-rank test."""

    n_folds: int
    threshold: float
    """The largest p that gives a trial up."""

    def after_fold(self, mine: Curves, others: Sequence[Curves]) -> str | None:
        """Return why to give *mine* up, or None."""
        complete = _complete(others, self.n_folds)
        if len(complete) < _FEWEST_COMPLETE:
            return None
        best = _best(complete)
        p = signed_rank_p([score - best.scores[fold] for fold, score in mine.scores.items()])
        if p > self.threshold:
            return None
        return f"worse than trial {best.number}, the best, on the same folds: p {p:.3g} of at most {self.threshold:.3g}"


def fold_threshold(n_folds: int) -> float:
    """
    Return the p at which a trial of *n_folds* is given up between them.

    k folds reach 2^-k at the smallest, so it follows from their number: what losing each of the smallest majority of them
    gives. Of two folds that is both, and nothing is given up.
    """
    return 2.0 ** -(n_folds // 2 + 1)


def signed_rank_p(differences: Sequence[float]) -> float:
    """
    Return the chance of positive ranks as small as those of *differences* if either sign were as likely; 1 where all are 0.

    Differences of 0 are left out, equal ones share their mean rank. Exact: all signs are counted.
    Source: Wilcoxon (1945); scipy.stats.wilcoxon(alternative="less", zero_method="wilcox"), whose exact method knows no ties.
    """
    sizes = sorted(abs(each) for each in differences if each != 0)
    doubled = {size: 2 * sizes.index(size) + sizes.count(size) + 1 for size in sizes}  # ranks, whole also at ties
    ways = Counter({0: 1})  # of choosing signs, by the sum of the positive ranks
    for size in sizes:
        ways += Counter({total + doubled[size]: count for total, count in ways.items()})
    seen = sum(doubled[each] for each in differences if each > 0)
    as_small = sum(count for total, count in ways.items() if total <= seen)
    return as_small / float(2 ** len(sizes))


@dataclass(frozen=True)
class LowerShare:
    """
    Gives a trial up whose best epoch so far is in the lower share of all that got as far in the first fold.

    In that fold only: those that got to a later one are a selection, and to take a share away from it each time takes winners.
    """

    share: float
    at: frozenset[int]
    """Epochs, from 0."""

    def looks_after_epoch(self, fold: int, epoch: int) -> bool:
        """Return whether there is anything to ask then."""
        return fold == 0 and epoch in self.at

    def after_epoch(self, mine: Curves, others: Sequence[Curves], fold: int, epoch: int) -> str | None:
        """Return why to give *mine* up, or None."""
        so_far = best_so_far(mine, fold, epoch)
        theirs = [value for other in others if (value := _reached(other, fold, epoch)) is not None]
        if so_far is None or len(theirs) < _FEWEST_CURVES:
            return None
        limit = quantiles(theirs, n=100, method="inclusive")[round(100 * self.share) - 1]
        if so_far >= limit:
            return None
        return (
            f"best epoch so far {so_far:.4f}, below {limit:.4f}: in the lower {self.share:.0%} of {len(theirs)} trials"
        )


@dataclass(frozen=True)
class Forecast:
    """
    Gives a trial up that will hardly become the best.

    The trial is taken to stay as far above or below the complete trials' mean of each fold as it was on its folds so far, and
    the fold under way to end where finished ones with such a curve did. Both with the spread seen among the trials, which gives
    the chance that its mean over all folds ends above the best complete trial's.
    """

    n_folds: int
    at: frozenset[int]
    """Epochs, from 0, of every fold."""
    least_chance: float
    """Of becoming the best; a trial with less is given up."""
    fewest: int = _FEWEST_COMPLETE
    """Complete trials before any is given up."""

    def looks_after_epoch(self, fold: int, epoch: int) -> bool:
        """Return whether there is anything to ask then."""
        return fold < self.n_folds and epoch in self.at

    def after_fold(self, mine: Curves, others: Sequence[Curves]) -> str | None:
        """Return why to give *mine* up, or None."""
        return self._hopeless(mine, others, None)

    def after_epoch(self, mine: Curves, others: Sequence[Curves], fold: int, epoch: int) -> str | None:
        """Return why to give *mine* up, or None."""
        underway = _underway(mine, others, fold, epoch, self.fewest)
        return None if underway is None else self._hopeless(mine, others, underway)

    def _hopeless(self, mine: Curves, others: Sequence[Curves], underway: _Underway | None) -> str | None:
        """Return why *mine* will hardly be the best; None if it may, or if too few are complete to tell."""
        complete = _complete(others, self.n_folds)
        if len(complete) < self.fewest:
            return None
        best = _best(complete)
        end = _forecast(mine.scores, complete, underway)
        chance = 1 - NormalDist(end.mean, math.sqrt(end.variance)).cdf(_value(best))
        if chance >= self.least_chance:
            return None
        return (
            f"its mean over all folds is expected at {end.mean:.4f} +- {math.sqrt(end.variance):.4f}, and trial "
            f"{best.number} has {_value(best):.4f}: a chance of {chance:.1%}, below {self.least_chance:.1%}"
        )


@dataclass(frozen=True)
class _Expected:
    """What is expected of a number."""

    mean: float
    variance: float


@dataclass(frozen=True)
class _Underway:
    """A fold that is being trained, and the score that its curve alone would let expect."""

    fold: int
    score: float
    variance: float


def _forecast(scores: Mapping[int, float], complete: Sequence[Curves], underway: _Underway | None) -> _Expected:
    """
    Return the mean over all folds of a trial with *scores* so far, as the *complete* trials let one expect.

    A score is fold + trial + residual. The folds and the residuals' variance are those of the complete trials; nothing is
    believed of a trial beforehand. A score under way is the mean of what trial and curve say, each by its precision.

    Source: Scheffe, The Analysis of Variance (1959), chapter 4: the two-way layout with one observation a cell.
    """
    levels, variance = _folds(complete)
    done = {fold: score for fold, score in scores.items() if underway is None or fold != underway.fold}
    observed = [(score - levels[fold], variance) for fold, score in done.items()]
    if underway is not None:
        observed.append((underway.score - levels[underway.fold], variance + underway.variance))
    precision = sum(1 / spread for _, spread in observed)
    above = sum(difference / spread for difference, spread in observed) / precision
    total = sum(done.values()) + sum(level + above for fold, level in enumerate(levels) if fold not in done)
    unknown = float(len(levels) - len(done))
    if underway is not None:
        told = variance / (variance + underway.variance)  # of the score under way, by its curve
        total += told * (underway.score - levels[underway.fold] - above)
        unknown -= told
    # What is missing shares the uncertainty of `above`, and each has a residual; levels are means of so many trials.
    spread = (unknown**2 / precision + unknown * variance) * (1 + 1 / len(complete))
    return _Expected(total / len(levels), spread / len(levels) ** 2)


def _folds(complete: Sequence[Curves]) -> tuple[list[float], float]:
    """Return the mean score of each fold, and the variance of what a score is beside its fold and its trial."""
    n_folds = len(complete[0].scores)
    levels = [fmean(trial.scores[fold] for trial in complete) for fold in range(n_folds)]
    overall = fmean(levels)
    residuals = [
        trial.scores[fold] - levels[fold] - value + overall
        for trial, value in zip(complete, map(_value, complete), strict=True)
        for fold in range(n_folds)
    ]
    return levels, _variance(residuals, (len(complete) - 1) * (n_folds - 1))


def _underway(mine: Curves, others: Iterable[Curves], fold: int, epoch: int, fewest: int) -> _Underway | None:
    """
    Return the score that the curve of *fold* until *epoch* lets expect; None if it, or fewer than *fewest* others, tell nothing.

    By the line from best epoch until then to score of finished folds, with a height for each fold and one slope, not below 0.
    The slope is there because folds are finished by the better trials: what others would have risen is not seen.
    """
    so_far, pairs = best_so_far(mine, fold, epoch), _so_far_and_score(others, epoch)
    if so_far is None or len(pairs[fold]) < fewest:
        return None
    centres = {each: (fmean(x for x, _ in own), fmean(y for _, y in own)) for each, own in pairs.items()}
    moved = [(x - centres[each][0], y - centres[each][1]) for each, own in pairs.items() for x, y in own]
    believed = _USUAL_WEIGHT * _USUAL_SD**2  # in a slope of 1
    slope = max(0.0, sum(x * y for x, y in moved) + believed) / (sum(x * x for x, _ in moved) + believed)
    variance = _variance((y - slope * x for x, y in moved), len(moved) - len(pairs))
    expected = centres[fold][1] + slope * (so_far - centres[fold][0])
    return _Underway(fold, max(so_far, expected), variance)


def _so_far_and_score(others: Iterable[Curves], epoch: int) -> Mapping[int, list[tuple[float, float]]]:
    """Return by fold best epoch until *epoch* and score of all that went on after it: others cannot tell what may still come."""
    pairs: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for other in others:
        for fold, curve in other.epochs.items():
            so_far = best_so_far(other, fold, epoch)
            if fold in other.scores and len(curve) > epoch + 1 and so_far is not None:
                pairs[fold].append((so_far, other.scores[fold]))
    return pairs


def _variance(deviations: Iterable[float], freedom: int) -> float:
    """Return the variance of *deviations* with *freedom*, and with them what is usual."""
    squares = sum(each**2 for each in deviations)
    return (squares + _USUAL_WEIGHT * _USUAL_SD**2) / (freedom + _USUAL_WEIGHT)


def _reached(trial: Curves, fold: int, epoch: int) -> float | None:
    """Return the best of *fold* until *epoch*; None if the trial was given up before it."""
    curve = trial.epochs.get(fold, ())
    return best_so_far(trial, fold, epoch) if len(curve) > epoch or fold in trial.scores else None


def best_so_far(trial: Curves, fold: int, epoch: int) -> float | None:
    """Return the largest value of *fold* until *epoch*, as far as there are any."""
    values = [value for value in trial.epochs.get(fold, ())[: epoch + 1] if value is not None]
    return max(values, default=None)


def _complete(others: Sequence[Curves], n_folds: int) -> list[Curves]:
    """Return the complete trials, with a score of every fold."""
    return [other for other in others if other.complete and other.scores.keys() == set(range(n_folds))]


def _best(complete: Sequence[Curves]) -> Curves:
    """Return the trial with the largest value, the first of equals."""
    return max(complete, key=_value)


def _value(trial: Curves) -> float:
    """Return the objective of a complete trial."""
    return fmean(trial.scores.values())


def _without(others: Sequence[Curves], mine: Curves) -> list[Curves]:
    return [other for other in others if other.number != mine.number]
