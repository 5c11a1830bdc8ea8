"""Which parameters matter: the same trials give the same numbers, and where nothing can be said nothing is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState, create_trial

from hpo.importance import Importance, NoImportanceError, importance
from hpo.study import Study
from hpo.study_file import StudyFile
from storage.ledger import Registration
from storage.study_storage import StudyStorage
from storage.tree import OutputTree

FILE = StudyFile.model_validate(
    {
        "study": "s",
        "seed": 2**32 - 1,
        "search": {
            "lr": {"type": "float", "low": 1e-5, "high": 1.0, "log": True},
            "weight_decay": {"type": "float", "low": 0.0, "high": 1.0},
            "class_weights": {"type": "categorical", "choices": ["none", "auto"]},
            "label_smoothing": {"type": "float", "low": 0.0, "high": 0.5, "when": {"class_weights": "none"}},
            "epochs": {"type": "int", "low": 3, "high": 3},
        },
        "budget": {"trials": 100},
    }
)
Tried = tuple[dict[str, Any], float | None]


def tried(count: int, value: Callable[[dict[str, Any]], float]) -> list[Tried]:
    """Return configurations at random, with their values."""
    chance = random.Random(7)  # noqa: S311 - of a test
    trials: list[Tried] = []
    for _ in range(count):
        params = FILE.space().suggest(lambda name, _: FILE.space().dimensions[name].at(chance.random()))
        trials.append((params, value(params)))
    return trials


def study_of(trials: Sequence[Tried]) -> Study:
    """Return a study of these trials; without a value one was pruned."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(direction="maximize")
    for params, value in trials:
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        distributions = FILE.space().distributions(params)
        scores = {} if value is None else dict.fromkeys(range(FILE.cv.folds), value)
        made.add_trial(
            create_trial(
                state=state, value=value, params=params, distributions=distributions, intermediate_values=scores
            )
        )
    nowhere = sa.create_engine("postgresql+psycopg2://")
    registration = Registration(made._study_id, "s", {}, "d", "f", "")
    return Study(
        registration, FILE, FILE.space(), OutputTree(Path("nowhere")).study("s"), StudyStorage(made._storage, nowhere)
    )


def shares(found: Importance, method: str) -> dict[str, float | None]:
    """Return the share of each parameter by one method."""
    return {each.name: getattr(each, method) for each in found.parameters}


def test_what_matters_comes_first() -> None:
    """The learning rate alone makes the difference; both methods say so, in shares of one, the same every time."""
    trials = tried(30, lambda params: -((math.log10(params["lr"]) + 3) ** 2) - 0.001 * params["weight_decay"])
    found = importance(study_of(trials))
    assert (found.trials, found.best) == (30, 5)
    assert found.parameters[0].name == "lr"
    for method in ("ped_anova", "fanova"):
        existing = [share for share in shares(found, method).values() if share is not None]
        assert sum(existing) == pytest.approx(1.0)
        assert max(existing) == shares(found, method)["lr"] > 0.5
    assert importance(study_of(trials)) == found


def test_conditional_parameter_is_counted_where_it_exists() -> None:
    """PED-ANOVA takes it in, fANOVA cannot, and nobody invents a number for it."""
    found = importance(study_of(tried(25, lambda params: params.get("label_smoothing", -1.0))))
    smoothing = next(each for each in found.parameters if each.name == "label_smoothing")
    assert 5 <= smoothing.trials < found.trials == 25
    assert smoothing.ped_anova is not None
    assert smoothing.fanova is None
    assert shares(found, "fanova")["class_weights"] > 0.5  # type: ignore[operator]
    assert shares(found, "ped_anova")["epochs"] == shares(found, "fanova")["epochs"] == 0.0, "it never varies"


def test_parameter_of_few_trials_is_left_open() -> None:
    """Four trials say nothing of it; the others keep their shares."""
    random_ones = tried(20, lambda params: params["lr"])
    trials = [each for each in random_ones if "label_smoothing" not in each[0]]
    few = [each for each in random_ones if "label_smoothing" in each[0]][:4]
    found = importance(study_of([*trials, *few]))
    smoothing = next(each for each in found.parameters if each.name == "label_smoothing")
    assert (smoothing.ped_anova, smoothing.fanova, smoothing.trials) == (None, None, 4)
    assert found.parameters[-1] == smoothing


def test_only_trials_that_finished_all_their_folds_count() -> None:
    """Pruned ones do not, whatever they had; of few trials the best half are set against all."""
    trials = tried(8, lambda params: params["lr"])
    pruned: list[Tried] = [(params, None) for params, _ in tried(30, lambda params: params["lr"])]
    found = importance(study_of([*trials, *pruned]))
    assert (found.trials, found.best) == (8, 4)


def test_no_equal_shares_where_nothing_was_found() -> None:
    """Most trials share the worst value, so that the best are all of them: Optuna alone would say every parameter is equal."""
    trials = [(params, 0.5 if number < 2 else 0.0) for number, (params, _) in enumerate(tried(20, lambda _: 0.0))]
    found = importance(study_of(trials))
    assert set(shares(found, "ped_anova").values()) == {None}


@pytest.mark.parametrize(
    ("trials", "complaint"),
    [
        ([], "0 trials that finished all their folds: expected at least 5"),
        (tried(4, lambda params: params["lr"]), "4 trials that finished"),
        (tried(9, lambda _: 0.25), "all 9 trials of study 's' that finished all their folds have the value 0.25"),
    ],
)
def test_nothing_to_say(trials: list[Tried], complaint: str) -> None:
    """Too few trials, or all of them alike, are one line."""
    with pytest.raises(NoImportanceError) as raised:
        importance(study_of(trials))
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_same_parameters_with_different_values() -> None:
    """A configuration that was repeated, and nothing else: no method finds anything, and none fails."""
    params = tried(1, lambda _: 0.0)[0][0]
    found = importance(study_of([(params, number / 10) for number in range(6)]))
    assert set(shares(found, "fanova").values()) == {None}
