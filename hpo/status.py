"""What `study status` says."""

from __future__ import annotations

import math
import socket
import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial
from pydantic import Field

from hpo import study as studies
from hpo.study import Study
from storage import ledger
from storage.heartbeat import GRACE_S
from storage.ledger import Budget, WorkerState
from storage.record import Record


class BestStatus(Record):
    """The best trial that finished all its folds."""

    number: int
    value: float
    params: dict[str, Any]


class Status(Record):
    """A study at one moment."""

    study: str
    state: str
    """
    waiting (nobody works on it), running; and when nothing more will begin and nothing runs: finished (the budget is
    spent), exhausted (every configuration was tried) or stopped.
    """
    direction: str
    trials: dict[str, int]
    """By state."""
    budget: Budget
    best: BestStatus | None
    seconds_left: float | None
    """Until the budget is spent, as the last trials and today's workers let expect; None where nothing can be said yet."""
    workers: list[WorkerState]
    left_over: dict[str, int] = Field(default_factory=dict)
    """Trials that were begun and that nobody works on now, by the kind of device that can go on with them."""


def worker_name(pid: int) -> str:
    """Return the name that tells people which process of this machine a worker is."""
    return f"{socket.gethostname()}:{pid}"


_LAST = 20
_ENDED = {"spent": "finished", "exhausted": "exhausted", "stopped": "stopped"}
_STATES = ("running", "waiting", "complete", "pruned", "fail")
STUDY_STATES = ("waiting", "running", *_ENDED.values())
_EVER_CHANGING: Any = {
    "seconds_left": True,
    "budget": {"hours": {"spent", "left"}, "gpu_hours": {"spent", "left"}},
    "workers": {"__all__": {"images_per_second", "last_heartbeat"}},
}


def status(study: Study) -> Status:
    """Return how far a study is. Raises StudyDeletedError."""
    study_id = study.registration.study_id
    budget = ledger.budget(study.storage.engine, study_id)
    workers = ledger.workers(study.storage.engine, study_id, GRACE_S)
    counts = Counter(trial.state.name.lower() for trial in study.trials)
    ranked = studies.ranking(study)
    best = ranked[0] if ranked else None
    return Status(
        study=study.name,
        state=_state(budget, counts, at_work=bool(workers)),
        direction="maximize",
        trials={state: counts[state] for state in _STATES},
        budget=budget,
        best=None if best is None else BestStatus(number=best.number, value=best.values[0], params=best.params),
        seconds_left=seconds_left(budget, study.trials, len(workers), datetime.now(UTC)),
        workers=workers,
        left_over=ledger.left_over(study.storage.engine, study_id),
    )


def seconds_left(budget: Budget, trials: Sequence[FrozenTrial], workers: int, now: datetime) -> float | None:
    """
    Return the seconds until the first of the limits in *budget* is reached with so many *workers*.

    A trial takes as long as the last twenty finished ones did from their first attempt on, at the median; those that were
    taken over from another study took no time here.
    """
    limits = []
    took = [
        (trial.datetime_complete - trial.datetime_start).total_seconds()
        for trial in trials
        if trial.datetime_complete is not None and trial.datetime_start is not None and "from" not in trial.user_attrs
    ]
    if budget.left is not None and took and workers:
        limits.append(math.ceil(budget.left / workers) * statistics.median(took[-_LAST:]))
    if budget.hours is not None and workers:
        limits.append(budget.hours.left * 3600)
    if budget.gpu_hours is not None and workers:
        limits.append(budget.gpu_hours.left * 3600 / workers)
    if budget.deadline is not None:
        limits.append(max(0.0, (budget.deadline - now).total_seconds()))
    return min(limits, default=None)


def _state(budget: Budget, counts: Counter[str], *, at_work: bool) -> str:
    if budget.ended is not None and counts["running"] == 0:
        return _ENDED[budget.ended]
    return "running" if at_work else "waiting"


def is_over(status: Status) -> bool:
    """Return whether nothing runs and nothing more will begin."""
    return status.state in _ENDED.values()


def events(status: Status) -> dict[str, Any]:
    """Return what of *status* stays the same while nothing happens: all but the clocks and the speeds."""
    return status.model_dump(exclude=_EVER_CHANGING)
