"""What is said of a study at one moment: its state, what happened, and when it will be over."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.status import Status, _state, events, seconds_left
from storage.ledger import Budget, Spending, WorkerState

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


def budget(asked: int | None = None, spent: int = 0, **limits: Any) -> Budget:
    """Return a budget of trials, and of what else is given."""
    left = None if asked is None else asked - spent
    nothing = dict.fromkeys(("hours", "gpu_hours", "deadline", "ended", "stop_reason"))
    return Budget.model_validate({**nothing, "asked": asked, "spent": spent, "left": left, **limits})


def hours(asked: float, spent: float) -> Spending:
    """Return what is spent of so many hours."""
    return Spending(asked=asked, spent=spent, left=asked - spent)


def took(seconds: float, state: TrialState = TrialState.COMPLETE, **attributes: str) -> FrozenTrial:
    """Return a trial that took so long."""
    value = 0.5 if state == TrialState.COMPLETE else None
    trial = create_trial(state=state, value=value, user_attrs=attributes)
    trial.datetime_start = NOW.replace(tzinfo=None)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
    return trial


@pytest.mark.parametrize(
    ("limits", "trials", "workers", "expected"),
    [
        (budget(10, 3), [took(10), took(20), took(90)], 2, 4 * 20),  # 7 trials in 4 rounds, each of the median
        (budget(10, 9), [took(10)], 8, 10),
        (budget(10, 10), [took(10)], 0, None),
        (budget(10, 3), [took(10)], 0, None),
        (budget(10, 0), [], 2, None),
        (budget(10, 2), [took(10, TrialState.PRUNED), took(30, TrialState.FAIL)], 1, 8 * 20),
        (budget(30, 25), [took(1000)] * 5 + [took(10)] * 20, 1, 5 * 10),  # the last twenty alone
        (budget(10, 1), [took(0, **{"from": "another study"})] * 5 + [took(60)], 1, 9 * 60),
        (budget(hours=hours(2, 0.5)), [], 3, 1.5 * 3600),
        (budget(gpu_hours=hours(4, 1)), [], 2, 1.5 * 3600),
        (budget(100, 0, hours=hours(1, 0.9)), [took(3600)], 1, 360),  # the first limit that is reached
        (budget(10, 0, deadline=NOW + timedelta(minutes=2)), [took(600)], 1, 120),
        (budget(10, 0, deadline=NOW + timedelta(minutes=2)), [], 0, 120),  # it comes whether anybody works or not
        (budget(10, 0, deadline=NOW - timedelta(minutes=2)), [took(600)], 1, 0),
    ],
)
def test_seconds_left(limits: Budget, trials: list[FrozenTrial], workers: int, expected: float | None) -> None:
    """Until the first of the limits, as the last trials and today's workers let expect; nothing where nothing is known."""
    assert seconds_left(limits, trials, workers, NOW) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("ended", "running", "at_work", "state"),
    [
        (None, 0, False, "waiting"),
        (None, 2, True, "running"),
        (None, 2, False, "waiting"),  # their workers are gone
        ("spent", 1, True, "running"),
        ("spent", 0, False, "finished"),
        ("exhausted", 0, False, "exhausted"),
        ("stopped", 1, False, "waiting"),  # what has begun is finished first
        ("stopped", 0, False, "stopped"),
    ],
)
def test_state(ended: str | None, running: int, at_work: bool, state: str) -> None:
    """A study is over once nothing more begins and nothing runs."""
    assert _state(budget(10, ended=ended), Counter(running=running), at_work=at_work) == state


def looked(epoch: int, *, later_s: float = 0.0) -> Status:
    """Return a study that one worker works on, some seconds later."""
    worker = WorkerState(
        name="host:1", device="cpu", trial=0, fold=0, epoch=epoch, images_per_second=10.0 + later_s,
        last_heartbeat=NOW + timedelta(seconds=later_s),
    )  # fmt: skip
    counts = {"running": 1, "waiting": 0, "complete": 0, "pruned": 0, "fail": 0}
    return Status(
        study="s", state="running", direction="maximize", trials=counts, budget=budget(3, hours=hours(1, later_s / 3600)),
        best=None, seconds_left=100.0 - later_s, workers=[worker],
    )  # fmt: skip


def test_only_what_happens_is_an_event() -> None:
    """A finished epoch is; a heartbeat, a speed and the clock are not."""
    assert events(looked(0, later_s=2.0)) == events(looked(0))
    assert events(looked(1)) != events(looked(0))
