"""Notes of trials: short, complete, and nothing in them that Markdown could take for more than text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from hpo.notes import LARGEST, bare_note, escaped, note
from storage.record import Attempt, TrialRecord

NOW = datetime(2026, 11, 26, tzinfo=UTC)
PICTURES = {"curves": "/artifacts/1/2/3"}
NASTY = "<script>alert(1)</script> | `x` ```` [a](javascript:b) \n# *y*\n\n"


def attempt(number: int, ending: str = "complete") -> Attempt:
    """Return an attempt of three minutes and four epochs."""
    return Attempt(
        number=number, token="", worker="w", device="cuda:0", gpus=1.0, environment={}, start=NOW,
        end=NOW + timedelta(minutes=3), ending=ending, epochs={0: [0, 1, 2], 1: [0]},
    )  # fmt: skip


def record(**fields: Any) -> TrialRecord:
    """Return the record of a complete trial with these fields."""
    usual: dict[str, Any] = {
        "study": "density", "number": 7, "root_number": 7, "attempts": [attempt(0, "lost"), attempt(1)],
        "state": "complete", "reason": None, "value": 0.41234, "params": {"lr": 1.23456789e-4, "arch": "resnet50"},
        "distributions": {}, "fold_scores": [0.3, 0.5, 0.4], "n_folds_done": 3, "pruned_at": None,
        "config": {"arch": "resnet50", "img_size": 512, "batch_size": 16, "epochs": 12}, "seeds": {}, "threads": 2,
        "resolution": None, "versions": {}, "git_commit": "4e669c7b0123", "data_hash": "d", "folds_hash": "f",
        "device": "NVIDIA H100", "gpu_seconds": 1.0, "started_at": NOW, "finished_at": NOW, "artifacts": [],
    }  # fmt: skip
    return TrialRecord.model_validate({**usual, **fields})


def test_note_of_a_complete_trial() -> None:
    """All that one wants to know at a glance."""
    assert (
        note(record(), PICTURES)
        == """\
**0.4123** balanced accuracy adjusted for chance

| parameter | value |
| --- | --- |
| lr | 0.000123457 |
| arch | resnet50 |

Folds: 0.3000, 0.5000, 0.4000; mean 0.4000, sd 0.1000 (n = 3)

Attempts: 2

* 0: lost on cuda\\:0 after 3 min, 4 epochs
* 1: complete on cuda\\:0 after 3 min, 4 epochs

resnet50, 512 px, batches of 16, 12 epochs a fold, NVIDIA H100, 2 threads, commit 4e669c7b. Its folder: `density/trial_0007`

![curves](/artifacts/1/2/3)
"""
    )


def test_note_of_a_pruned_and_of_a_failed_trial() -> None:
    """Why, word for word, and what there was until then."""
    pruned = note(
        record(state="pruned", value=None, reason="hopeless", fold_scores=[0.3, None], n_folds_done=1, pruned_at=0), {}
    )
    assert pruned.startswith("**pruned**, 1 fold finished\n")
    assert "```text\nhopeless\n```" in pruned
    assert "Folds: 0.3000, none; mean 0.3000 (n = 1)" in pruned
    failed = note(
        record(state="fail", value=None, reason="x", fold_scores=[None, None], n_folds_done=0, device=None), {}
    )
    assert failed.startswith("**failed**\n")
    assert "No fold was finished." in failed


def test_nothing_in_a_note_means_anything_to_markdown() -> None:
    """A reason stands between fences that are longer than any in it; a value in the table stays in its cell, on its line."""
    shown = note(record(state="fail", value=None, reason=NASTY, params={"arch": NASTY}), {})
    (row,) = [line for line in shown.splitlines() if line.startswith("| arch")]
    assert row.replace("\\|", "").count("|") == 3
    assert "\\<script\\>" in row
    assert shown.count("`````") == 2
    assert escaped("a_b\n|c") == "a\\_b \\|c"


@pytest.mark.parametrize("filling", ["x", "ä", "\N{PILE OF POO}", "`", "|"])
def test_notes_stay_small(filling: str) -> None:
    """However many parameters there are, and however long anything is: the end of a reason and some of the parameters."""
    params = {f"parameter_{number}": filling * 200 for number in range(60)}
    shown = note(
        record(
            state="fail", value=None, reason=f"{filling * 5000} the end", params=params, study="s" * 100,
            fold_scores=[0.1] * 20, attempts=[attempt(number, "lost") for number in range(30)], device="d" * 100,
        ),
        {"learning curves": "x" * 80, "confusion matrix": "x" * 80},
    )  # fmt: skip
    assert len(shown.encode()) < LARGEST
    assert "the end\n`" in shown
    assert "more parameters are in `optuna_trial.json`" in shown
    assert "* 26 earlier ones" in shown


def test_note_of_a_trial_that_was_not_trained_here() -> None:
    """It says where its files are, or that there are none."""
    taken = create_trial(state=TrialState.COMPLETE, value=0.5, user_attrs={"from": {"study": "old", "number": 5}})
    assert "Taken over from trial 5 of study old" in bare_note(taken, str)
    script = create_trial(state=TrialState.FAIL, user_attrs={"reason": "secret"})
    assert "```text\nS\n```" in bare_note(script, lambda text: text[0].upper())
    assert "No worker of this study" in bare_note(script, str)
