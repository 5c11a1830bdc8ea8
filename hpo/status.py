"""What `study status` says."""

from __future__ import annotations

import socket
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from hpo import study as studies
from hpo.study import Study
from storage import ledger


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BudgetStatus(_Part):
    """Trials asked for, spent and left."""

    asked: int
    spent: int
    left: int


class BestStatus(_Part):
    """The best trial that finished all its folds."""

    number: int
    value: float
    params: dict[str, Any]


class WorkerStatus(_Part):
    """A worker that holds a trial."""

    name: str
    device: str
    trial: int
    fold: int | None
    epoch: int | None
    last_heartbeat: datetime


class Status(_Part):
    """A study at one moment."""

    study: str
    state: str
    """waiting (nobody works on it), running, or finished."""
    direction: str
    trials: dict[str, int]
    """By state."""
    budget: BudgetStatus
    best: BestStatus | None
    workers: list[WorkerStatus]


def worker_name(pid: int) -> str:
    """Return the name that tells people which process of this machine a worker is."""
    return f"{socket.gethostname()}:{pid}"


_STATES = ("running", "waiting", "complete", "pruned", "fail")


def status(study: Study) -> Status:
    """Return how far a study is."""
    study_id = study.registration.study_id
    budget = ledger.budget(study.storage.engine, study_id)
    workers = ledger.workers(study.storage.engine, study_id)
    counts = Counter(trial.state.name.lower() for trial in study.trials)
    ranked = studies.ranking(study)
    best = ranked[0] if ranked else None
    return Status(
        study=study.name,
        state="finished" if budget.left == 0 else "running" if workers else "waiting",
        direction="maximize",
        trials={state: counts[state] for state in _STATES},
        budget=BudgetStatus(asked=budget.asked, spent=budget.spent, left=budget.left),
        best=None if best is None else BestStatus(number=best.number, value=best.values[0], params=best.params),
        workers=[
            WorkerStatus(
                name=worker.name,
                device=worker.device,
                trial=worker.trial,
                fold=worker.fold,
                epoch=worker.epoch,
                last_heartbeat=worker.last_heartbeat.astimezone(UTC),
            )
            for worker in workers
        ],
    )
