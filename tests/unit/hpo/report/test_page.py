"""The page of a study: what a reader finds on it, and what nobody may find."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState, create_trial
from plotly.offline import get_plotlyjs

from hpo import study as studies
from hpo.report.archive import MEANINGS
from hpo.report.axes import axes
from hpo.report.findings import Findings
from hpo.report.identifiers import Identifiers
from hpo.report.outcomes import ENDINGS
from hpo.report.overview import busy_s
from hpo.report.page import page
from hpo.report.predictions import _leanings
from hpo.status import Status
from hpo.study import Study
from hpo.study_file import StudyFile
from storage.claims import Ending
from storage.ledger import Budget, Course, Registration
from storage.record import StudyRecord
from storage.study_storage import StudyStorage
from storage.summaries import AttemptInBrief
from storage.tree import OutputTree
from trainer.data.records import Code
from trainer.records import FoldResult

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
FILE = StudyFile.model_validate(
    {
        "study": "density",
        "cv": {"folds": 3},
        "train": {"weights": "/home/nobody/weights/own.pth", "epochs": 12},
        "search": {
            "lr": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
            "warmup_epochs": {"type": "int", "low": 0, "high": 3},
            "class_weights": {"type": "categorical", "choices": ["none", "auto"]},
            "label_smoothing": {"type": "float", "low": 0.0, "high": 0.5, "when": {"class_weights": "none"}},
        },
        "sampler": {"name": "tpe", "startup_trials": 4},
        "pruning": {"name": "auto"},
        "budget": {"trials": 12, "hours": 3},
    }
)
FOLDS = "image,patient,label,fold\n" + "".join(
    f"{n:07}/L_CC.dcm,PAT-{n:04},{1 + n % 2},{n % 3 if n < 9 else ''}\n" for n in range(10)
)
ENVIRONMENT = {"versions": {"python": "3.11.7", "torch": "2.9.0"}, "git_commit": "c" * 40, "git_dirty": False}


def complete(value: float, **params: Any) -> FrozenTrial:
    """Return a trial that ran all folds."""
    whole = {"lr": 1e-3, "warmup_epochs": 1, "class_weights": "auto", **params}
    return create_trial(
        state=TrialState.COMPLETE,
        value=value,
        params=whole,
        distributions=FILE.space().distributions(whole),
        intermediate_values={0: value - 0.1, 1: value, 2: value + 0.1},
    )


def ended(state: TrialState, reason: str) -> FrozenTrial:
    """Return a trial that was pruned or failed."""
    return create_trial(state=state, user_attrs={"reason": reason}, intermediate_values={0: 0.9})


def attempt(ending: Ending | None, start_s: float = 0.0, **environment: Any) -> AttemptInBrief:
    """Return an attempt that took a minute."""
    start = NOW + timedelta(seconds=start_s)
    return AttemptInBrief(
        device="cpu",
        gpus=0.0,
        environment={**ENVIRONMENT, **environment},
        start=start,
        end=None if ending is None else start + timedelta(seconds=60),
        ending=None if ending is None else str(ending),
    )


def findings(
    trials: Sequence[FrozenTrial],
    *,
    attempts: dict[int, list[AttemptInBrief]] | None = None,
    courses: dict[int, Course] | None = None,
    record: bool = True,
    state: str = "finished",
    root: Path = Path("nowhere"),
) -> Findings:
    """Return what is known of a study of these trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(direction="maximize")
    made.add_trials(trials)
    registration = Registration(made._study_id, "density", {}, "d" * 64, "f" * 64, FOLDS)
    study = Study(
        registration,
        FILE,
        FILE.space(),
        OutputTree(root).study("density"),
        StudyStorage(made._storage, sa.create_engine("postgresql+psycopg2://u:geheim@database-host/d")),
    )
    budget = Budget(
        asked=12, spent=len(trials), left=12 - len(trials), hours=None, gpu_hours=None, deadline=None, ended="spent",
        stop_reason=None,
    )  # fmt: skip
    status = Status(
        study="density",
        state=state,
        direction="maximize",
        trials={},
        budget=budget,
        best=None,
        seconds_left=None,
        workers=[],
    )
    written = StudyRecord(
        study="density", resolved={}, data_hash="d", folds_hash="f", images=10, patients=10, class_names=["1", "2"],
        rejected={"BLANK": 2, "NO_LABEL": 1}, versions={"python": "3.11.7"}, git_commit=None, created_at=NOW,
    )  # fmt: skip
    return Findings(
        study=study,
        at=NOW,
        status=status,
        trials=study.trials,
        ranked=studies.ranking(study),
        attempts=attempts or {},
        courses=courses or {},
        record=written if record else None,
        rejections=None,
        identifiers=Identifiers.of(FOLDS),
    )


def text_of(html: str) -> str:
    """Return what stands on a page, without its scripts and its style."""
    shown = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", shown).split())


def figures(html: str) -> list[str]:
    """Return the names of the figures of a page."""
    return re.findall(r'<figure id="figure-(\w+)">', html)


def test_study_without_a_finished_trial() -> None:
    """The page comes and says so; it needs no script then."""
    html = page(findings([], state="waiting"))
    text = text_of(html)
    assert "The study is not over (waiting)" in text
    assert "No trial has finished all its folds yet" in text
    assert "No trial failed." in text
    assert figures(html) == []
    assert len(html) < 50_000


def test_best_trial_is_said_to_be_a_selection() -> None:
    """Value, spread, parameters and rank are there, and that the best of so many looks better than it is."""
    trials = [complete(0.3), complete(0.5, lr=0.002), ended(TrialState.PRUNED, "no hope"), complete(0.45, lr=0.003)]
    html = page(findings(trials, attempts={1: [attempt(Ending.LOST), attempt(Ending.COMPLETE)]}))
    text = text_of(html)
    assert "trial 1 value 0.5000 ± 0.1000 (mean and standard deviation over 3 folds)" in text
    assert "attempts 2: lost, complete" in text
    assert "the largest of 4 trials that were compared on the same folds" in text
    assert "The best of many looks better than it is" in text
    assert "It lies above the other 2 ranked by more than the noise of the folds." in text
    assert "2 3 0.4500 0.1000 \u22120.0500 ± 0.0000 0.3500 0.4500 0.5500" in text, "the second of the ranking"
    assert figures(html) == ["history", "slices", "parallel", "folds"]
    assert "expected at least 5" in text, "of importances"


def test_enough_trials_have_importances() -> None:
    """From five trials with all their folds on."""
    html = page(findings([complete(0.1 * n, lr=1e-4 * (n + 1)) for n in range(8)]))
    assert "importances" in figures(html)


def test_pruned_trial_is_never_among_the_ranked() -> None:
    """Whatever its first fold promised, only trials with all folds are drawn with a value."""
    html = page(findings([complete(0.3), ended(TrialState.PRUNED, "x"), ended(TrialState.FAIL, "y")]))
    text = text_of(html)
    assert "Trials that were pruned or failed have no value to compare, and stand below." in text
    assert "0.9000" not in text


def test_what_failed_is_grouped_and_harmless() -> None:
    """Reasons that differ in numbers stand in one row, as text whatever is in them, and name nobody."""
    script = "<script>alert(1)</script> in fold {}"
    traceback = (
        "Traceback (most recent call last):\n  File x\nValueError: 0000004/L_CC.dcm of PAT-0004: password=geheim"
    )
    trials = [
        *(ended(TrialState.FAIL, script.format(fold)) for fold in range(3)),
        ended(TrialState.FAIL, traceback),
        ended(TrialState.PRUNED, "best epoch so far 0.1, below 0.2"),
        ended(TrialState.PRUNED, "best epoch so far 0.15, below 0.3"),
    ]
    courses = {
        4: Course(4, True, False, {0: 0.9}, {0: (0.1, 0.2), 1: (0.1,)}),
        5: Course(5, True, False, {}, {0: (0.1, 0.2)}),
    }
    attempts = {
        0: [attempt(Ending.LOST), attempt(Ending.HUNG), attempt(Ending.FAIL)],
        4: [attempt(Ending.STOPPED), attempt(None)],
    }
    html = page(findings(trials, courses=courses, attempts=attempts))
    assert "<script>alert" not in html
    text = text_of(html)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; in fold 0 3 3 0, 1, 2" in text
    assert "ValueError: [image] of [identifier]: password=[hidden] 1 0 3" in text
    assert "best epoch so far 0.1, below 0.2 2 4, 5" in text
    assert "0 1 1 50.0 % 1 0 1 50.0 %" in text, "when they were pruned: fold, epoch, trials, share"
    for row in ("lost 1 its worker died", "hung 1 did not advance", "stopped 1 was asked", "at work 1 has not ended"):
        assert row in text
    assert "0 3: lost, hung, fail" in text
    assert "4 2: stopped, at work" in text


def test_page_names_nobody() -> None:
    """No patient, image, accession number, path, machine, address or password, in the figures neither."""
    trials = [
        complete(0.3),
        complete(0.4, lr=2e-3),
        ended(TrialState.FAIL, "/srv/data/0000001/L_CC.dcm of PAT-0001 is gone"),
    ]
    html = page(findings(trials, attempts={0: [attempt(Ending.COMPLETE)]}))
    html = html.replace(get_plotlyjs(), "")
    for private in (
        "PAT-",
        "0000001",
        "L_CC",
        "/srv",
        "/home/nobody",
        "geheim",
        "database-host",
        "nowhere",
    ):
        assert private not in html
    assert "own.pth" in html


def test_data_by_class_and_fold() -> None:
    """Images and patients of each class in each fold, what is set aside, what was not used and why, and both hashes."""
    text = text_of(page(findings([])))
    assert "10 images of 10 patients in 2 classes" in text
    assert "1 2 (2) 1 (1) 2 (2) 0 (0) 5 (5) 2 1 (1) 2 (2) 1 (1) 1 (1) 5 (5) all 3 (3) 3 (3) 3 (3) 1 (1) 10 (10)" in text
    assert "own test set: no trial has seen it" in text
    assert "3 images and labels not used" in text
    assert "BLANK broken: one grey level throughout 2" in text
    assert "d" * 64 in text
    assert "f" * 64 in text


def test_every_code_has_a_meaning() -> None:
    """A reader need not look a code up elsewhere."""
    assert MEANINGS.keys() == set(Code)


def test_every_ending_has_a_meaning() -> None:
    """An attempt that ended in a way nobody explains would be missing from the table."""
    assert ENDINGS.keys() == set(Ending)


def test_missing_folder_is_said() -> None:
    """Without the output tree the database's part is there, and what is missing is named."""
    text = text_of(page(findings([complete(0.3)], record=False)))
    assert "its folder trial_0000 is not in the output tree" in text
    assert "What was not used is unknown here" in text


@pytest.mark.parametrize(
    ("sampler", "weights", "smoothing", "said"),
    [
        ("none", None, 0.0, ""),
        ("weighted", None, 0.0, "drew its classes equally often"),  # which `auto` comes to, where classes are unequal
        ("none", (0.5, 2.0), 0.0, "weighted its classes"),
        ("none", None, 0.1, "never learnt to be sure"),
    ],
)
def test_what_shifts_probabilities_is_said(
    sampler: Literal["weighted", "none"], weights: tuple[float, ...] | None, smoothing: float, said: str
) -> None:
    """Who balances classes gets other probabilities than the archive's, which is no fault of the network."""
    fold = FoldResult.model_construct(sampler=sampler, class_weights=weights)
    words = _leanings([fold], FILE.train.model_copy(update={"label_smoothing": smoothing}))
    assert said in words
    assert bool(said) == bool(words)


def test_attempts_that_ran_with_other_versions_are_told() -> None:
    """Where they differ, and how many attempts had what."""
    attempts = {
        0: [attempt(Ending.COMPLETE)],
        1: [attempt(Ending.LOST, git_dirty=True), attempt(Ending.COMPLETE, versions={"torch": "2.10.0"})],
    }
    text = text_of(page(findings([complete(0.3), complete(0.4)], attempts=attempts)))
    assert "Attempts differ in " in text
    assert "torch 2.9.0 (2), 2.10.0 (1)" in text
    assert "working copy clean (2), changed (1)" in text


def test_busy_time_counts_moments_once() -> None:
    """Two attempts at the same time are a minute, not two; a pause between others is none."""
    overlapping = [attempt(Ending.COMPLETE), attempt(Ending.COMPLETE, 30), attempt(Ending.COMPLETE, 600)]
    assert busy_s(overlapping, NOW) == 150
    assert busy_s([attempt(None)], NOW + timedelta(seconds=7)) == 7


def test_only_its_own_scripts_may_run() -> None:
    """The policy allows nothing from elsewhere, and scripts by their hashes alone."""
    html = page(findings([complete(0.3)]))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe-inline" not in policy[1].split("style-src")[0]
    assert "unsafe-eval" not in policy[1]
    assert policy[1].count("sha256-") == 2
    assert not re.search(r'<(?:link|img|iframe)\b|\bsrc="', html[: html.index("plotly.js v")])


@pytest.mark.parametrize(
    ("name", "value", "height"),
    [
        ("lr", 1e-5, 0.0),
        ("lr", 1e-2, 1.0),
        ("lr", 10**-3.5, 0.5),
        ("warmup_epochs", 3, 1.0),
        ("label_smoothing", 0.25, 0.5),
    ],
)
def test_height_on_an_axis(name: str, value: float, height: float) -> None:
    """Ranges go from their low to their high end, on their own scale; where a trial has no such parameter it has no height."""
    axis = next(axis for axis in axes(FILE.space().dimensions) if axis.name == name)
    params = {"class_weights": "none", "label_smoothing": 0.1, name: value}
    assert axis.height(complete(0.3, **params)) == pytest.approx(height)
    assert axes(FILE.space().dimensions, first=[name])[0].name == name
    smoothing = axes(FILE.space().dimensions, first=["label_smoothing"])[0]
    assert smoothing.height(complete(0.3)) is None


def test_choices_are_told_apart_on_an_axis() -> None:
    """Trials of one choice are spread around it, and never reach the next."""
    (axis,) = axes({"class_weights": FILE.space().dimensions["class_weights"]})
    study = optuna.create_study(direction="maximize")
    study.add_trials([complete(0.3) for _ in range(50)])
    places = [axis.place(trial) for trial in study.get_trials()]
    assert all(place is not None and 0.6 < place < 1.4 for place in places)
    assert len(set(places)) == 50
