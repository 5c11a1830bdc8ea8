"""When a trial is given up: what a user of a study would see, and that the numbers behind it are right."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from itertools import product

import pytest
from scipy.stats import wilcoxon

from hpo.pruning import Curves, Mode, Pruning, _forecast, _Underway, fold_threshold, make_pruning, parts, signed_rank_p

N_EPOCHS = 15
MODES: tuple[Mode, ...] = ("off", "on", "auto")
COMBINATIONS = list(product(MODES, MODES))


def curve(score: float, n_epochs: int = N_EPOCHS) -> tuple[float | None, ...]:
    """Return a curve that rises evenly to its best and last epoch."""
    return tuple(score * (0.6 + 0.4 * (epoch + 1) / n_epochs) for epoch in range(n_epochs))


def trial(number: int, scores: Sequence[float], *, complete: bool = True, n_epochs: int = N_EPOCHS) -> Curves:
    """Return a trial with finished folds only."""
    by_fold = dict(enumerate(scores))
    return Curves(number, complete, by_fold, {fold: curve(score, n_epochs) for fold, score in by_fold.items()})


def study(n_trials: int, n_folds: int = 5, seed: int = 0, noise: float = 0.005) -> list[Curves]:
    """Return complete trials: folds that differ by much, trials that differ by less, and noise."""
    draw = random.Random(seed)  # noqa: S311 - nothing here is secret
    levels = [draw.gauss(0.5, 0.1) for _ in range(n_folds)]
    own = [draw.gauss(0, 0.05) for _ in range(n_trials)]
    return [
        trial(number, [level + above + draw.gauss(0, noise) for level in levels]) for number, above in enumerate(own)
    ]


def best_of(trials: Sequence[Curves]) -> Curves:
    """Return the complete trial with the largest mean."""
    return max(trials, key=lambda each: statistics.fmean(each.scores.values()))


def given_up(pruning: Pruning, mine: Curves, others: Sequence[Curves]) -> tuple[int, int | None] | None:
    """Train *mine*, whose folds are all there, under *pruning*; return fold and epoch where it was given up, or None."""
    for fold in mine.scores:
        done = {each: mine.scores[each] for each in range(fold)}
        for epoch in range(len(mine.epochs[fold]) - 1):
            curves = {each: mine.epochs[each] for each in range(fold)} | {fold: mine.epochs[fold][: epoch + 1]}
            if pruning.after_epoch(
                Curves(mine.number, complete=False, scores=done, epochs=curves), others, fold, epoch
            ):
                return fold, epoch
        curves = {each: mine.epochs[each] for each in range(fold + 1)}
        scores = done | {fold: mine.scores[fold]}
        if pruning.after_fold(Curves(mine.number, complete=False, scores=scores, epochs=curves), others, fold):
            return fold, None
    return None


@pytest.mark.parametrize(("folds", "epochs"), COMBINATIONS)
def test_nothing_is_given_up_with_too_little_to_compare(folds: Mode, epochs: Mode) -> None:
    """Trials that are running or were given up are not enough, however good they look."""
    pruning = make_pruning(folds, epochs, n_folds=5, n_epochs=N_EPOCHS)
    unfinished = [trial(number, [0.9, 0.9, 0.9], complete=False) for number in range(1, 4)]
    assert given_up(pruning, trial(9, [0.0] * 5), []) is None
    assert given_up(pruning, trial(9, [0.0] * 5), [trial(0, [0.9] * 5), *unfinished]) is None


@pytest.mark.parametrize(("folds", "epochs"), COMBINATIONS)
def test_enough_to_compare(folds: Mode, epochs: Mode) -> None:
    """Three complete trials are too few, five are enough, for every rule."""
    pruning = make_pruning(folds, epochs, n_folds=5, n_epochs=N_EPOCHS)
    assert given_up(pruning, trial(9, [0.0] * 5), study(3)) is None
    assert (given_up(pruning, trial(9, [0.0] * 5), study(5)) is None) == (folds == epochs == "off")


@pytest.mark.parametrize(("folds", "epochs"), COMBINATIONS)
def test_hopeless_trial(folds: Mode, epochs: Mode) -> None:
    """A trial near chance ends in its first fold where curves are looked at, else between folds, and never with both off."""
    pruning = make_pruning(folds, epochs, n_folds=5, n_epochs=N_EPOCHS)
    end = given_up(pruning, trial(12, [0.02, 0.01, 0.03, 0.02, 0.04]), study(12))
    if epochs != "off":
        assert end is not None
        assert end[0] == 0
        assert end[1] is not None
        assert end[1] < N_EPOCHS / 2
    else:
        assert end == {"off": None, "on": (2, None), "auto": (0, None)}[folds]


@pytest.mark.parametrize(("folds", "epochs"), COMBINATIONS)
@pytest.mark.parametrize("n_folds", [2, 3, 5, 10])
def test_equal_of_the_best_is_never_given_up(folds: Mode, epochs: Mode, n_folds: int) -> None:
    """Nor one that is a little better everywhere."""
    pruning = make_pruning(folds, epochs, n_folds=n_folds, n_epochs=N_EPOCHS)
    for seed in range(10):
        others = study(20, n_folds, seed)
        best = list(best_of(others).scores.values())
        assert given_up(pruning, trial(20, best), others) is None
        assert given_up(pruning, trial(20, [score + 0.01 for score in best]), others) is None


@pytest.mark.parametrize("folds", MODES)
def test_never_after_the_last_fold(folds: Mode) -> None:
    """A trial with all its folds is complete, however bad."""
    pruning = make_pruning(folds, "off", n_folds=3, n_epochs=N_EPOCHS)
    assert pruning.after_fold(trial(9, [0.0] * 3, complete=False), study(12, 3), 2) is None


def test_both_off() -> None:
    """The others' curves need never be read."""
    pruning = make_pruning("off", "off", n_folds=5, n_epochs=N_EPOCHS)
    assert not any(pruning.looks_after_epoch(fold, epoch) for fold in range(5) for epoch in range(N_EPOCHS))


def test_looks() -> None:
    """A few a fold; the quarter goes in the first fold alone; never after the last epoch, whatever their number."""
    auto, on = (make_pruning("off", mode, n_folds=5, n_epochs=N_EPOCHS) for mode in ("auto", "on"))
    assert [epoch for epoch in range(N_EPOCHS) if auto.looks_after_epoch(4, epoch)] == [4, 9]
    assert [epoch for epoch in range(N_EPOCHS) if on.looks_after_epoch(0, epoch)] == [3, 7, 11]
    assert not any(on.looks_after_epoch(1, epoch) for epoch in range(N_EPOCHS))
    for n_epochs in range(1, 40):
        assert all(0 <= epoch < n_epochs - 1 for epoch in parts(n_epochs, 3))
    assert parts(1, 3) == frozenset()


@pytest.mark.parametrize("n_folds", [2, 3, 4, 5, 10])
def test_threshold_follows_from_the_number_of_folds(n_folds: int) -> None:
    """A trial that loses every fold to the best one goes once it has lost more than half of them; of two folds it stays."""
    pruning = make_pruning("on", "off", n_folds=n_folds, n_epochs=N_EPOCHS)
    others = study(6, n_folds)
    losing = trial(6, [score - 0.01 for score in best_of(others).scores.values()])
    majority = n_folds // 2 + 1
    assert given_up(pruning, losing, others) == (None if majority == n_folds else (majority - 1, None))
    assert fold_threshold(n_folds) == 2.0**-majority


def test_signed_ranks_against_scipy() -> None:
    """Without ties, where scipy is exact too."""
    draw = random.Random(1)  # noqa: S311
    for _ in range(50):
        differences = [draw.gauss(-0.3, 1) for _ in range(draw.randint(1, 10))]
        expected = wilcoxon(differences, alternative="less", method="exact").pvalue
        assert signed_rank_p(differences) == pytest.approx(expected)


def test_signed_ranks_with_ties() -> None:
    """Ranks 1.5 1.5 3 with the smallest positive: 3 of 8 signs give as little; no difference says nothing."""
    assert signed_rank_p([0.1, -0.1, -0.2]) == 3 / 8
    assert signed_rank_p([0.0, -0.1, -0.1]) == 1 / 4
    assert signed_rank_p([0.0, 0.0]) == 1


@pytest.mark.parametrize("epochs", ["on", "auto"])
def test_undefined_epochs(epochs: Mode) -> None:
    """They are passed over; a curve without any number decides nothing, as one's own or another's."""
    pruning = make_pruning("off", epochs, n_folds=5, n_epochs=8)
    others = [trial(number, list(each.scores.values()), n_epochs=8) for number, each in enumerate(study(12))]
    look = next(epoch for epoch in range(8) if pruning.looks_after_epoch(0, epoch) and epoch > 0)

    def reason(*values: float | None, against: Sequence[Curves] = others) -> str | None:
        mine = Curves(12, complete=False, scores={}, epochs={0: values})
        return pruning.after_epoch(mine, against, 0, look)

    assert reason(*[None] * (look + 1)) is None
    assert reason(0.01, *[None] * look) is not None
    assert reason(0.9, *[None] * look) is None
    undefined = [
        Curves(each.number, each.complete, each.scores, dict.fromkeys(range(5), (None,) * 8)) for each in others
    ]
    assert reason(*[0.01] * (look + 1), against=undefined) is None


def test_folds_trained_elsewhere_have_no_curves() -> None:
    """Their scores still tell between folds; inside a fold nobody knows how far a curve rises."""
    pruning = make_pruning("auto", "auto", n_folds=5, n_epochs=N_EPOCHS)
    elsewhere = [Curves(each.number, each.complete, each.scores, {}) for each in study(12)]
    assert given_up(pruning, trial(12, [0.02] * 5), elsewhere) == (0, None)


def test_shorter_curves_say_nothing_of_what_may_still_come() -> None:
    """Trials of 5 epochs or fewer never end one of 15, whose curve is first looked at after 5; trials of 10 do."""
    pruning = make_pruning("off", "auto", n_folds=5, n_epochs=N_EPOCHS)
    scores = [list(each.scores.values()) for each in study(12)]
    hopeless = trial(12, [0.02] * 5)
    for n_epochs, expected in ((3, None), (5, None), (10, (0, 4))):
        others = [trial(number, own, n_epochs=n_epochs) for number, own in enumerate(scores)]
        assert given_up(pruning, hopeless, others) == expected
    mixed = [trial(number, own, n_epochs=3 + number) for number, own in enumerate(scores)]
    assert given_up(pruning, trial(12, [0.02] * 5, n_epochs=30), mixed) == (0, 4)


@pytest.mark.parametrize(("folds", "epochs"), COMBINATIONS)
def test_same_arguments_same_answer(folds: Mode, epochs: Mode) -> None:
    """The trial itself among the others changes nothing, and neither does what trials without curves or scores add."""
    others = study(15)
    nothing_known = Curves(99, complete=False, scores={}, epochs={})
    for number in range(15, 30):
        mine = trial(number, [0.5 + 0.01 * (number - 22)] * 5)
        answers = {
            given_up(make_pruning(folds, epochs, n_folds=5, n_epochs=N_EPOCHS), mine, seen)
            for seen in (others, list(others), [*others, mine], [*others, nothing_known])
        }
        assert len(answers) == 1


def test_only_complete_trials_are_the_best() -> None:
    """Folds of a trial that was given up, however good, are nothing that another has to beat."""
    pruning = make_pruning("auto", "off", n_folds=5, n_epochs=N_EPOCHS)
    others = study(12)
    best = trial(30, list(best_of(others).scores.values()))
    failed = [trial(number, [0.99] * 4, complete=False) for number in range(12, 20)]
    assert given_up(pruning, best, [*others, *failed]) is None


def test_reason_is_one_line_for_people() -> None:
    """It names the place and the trial to beat."""
    pruning = make_pruning("auto", "auto", n_folds=5, n_epochs=N_EPOCHS)
    others = study(12)
    mine = trial(12, [0.02], complete=False)
    reason = pruning.after_fold(mine, others, 0)
    assert reason is not None
    assert reason.startswith("after fold 0: ")
    assert f"trial {best_of(others).number} " in reason
    assert "\n" not in reason


@pytest.mark.parametrize("underway", [False, True])
@pytest.mark.parametrize("n_folds", [3, 5, 10])
def test_forecast_is_as_uncertain_as_it_says(n_folds: int, underway: bool) -> None:
    """Over many studies drawn from its own model the error, in units of the spread that it gives, has mean 0 and spread 1."""
    draw = random.Random(n_folds)  # noqa: S311
    errors = []
    for _ in range(1500):
        *others, mine = study(12, n_folds, draw.randrange(2**32), noise=0.05)
        done = {fold: mine.scores[fold] for fold in range(n_folds // 2)}
        now = _Underway(n_folds // 2, mine.scores[n_folds // 2] + draw.gauss(0, 0.03), 0.03**2) if underway else None
        end = _forecast(done, others, now)
        errors.append((statistics.fmean(mine.scores.values()) - end.mean) / end.variance**0.5)
    assert statistics.fmean(errors) == pytest.approx(0, abs=0.1)
    assert statistics.stdev(errors) == pytest.approx(1, abs=0.15)
