"""What `study status` says."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

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
    """waiting (nobody works on it), running, or finished."""
    direction: str
    trials: dict[str, int]
    """By state."""
    budget: Budget
    best: BestStatus | None
    workers: list[WorkerState]


def worker_name(pid: int) -> str:
    """Return the name that tells people which process of this machine a worker is."""
    return f"{socket.gethostname()}:{pid}"


_STATES = ("running", "waiting", "complete", "pruned", "fail")


def status(study: Study) -> Status:
    """Return how far a study is."""
    study_id = study.registration.study_id
    budget = ledger.budget(study.storage.engine, study_id)
    workers = ledger.workers(study.storage.engine, study_id, GRACE_S)
    counts = Counter(trial.state.name.lower() for trial in study.trials)
    ranked = studies.ranking(study)
    best = ranked[0] if ranked else None
    return Status(
        study=study.name,
        state="finished" if budget.left == 0 else "running" if workers else "waiting",
        direction="maximize",
        trials={state: counts[state] for state in _STATES},
        budget=budget,
        best=None if best is None else BestStatus(number=best.number, value=best.values[0], params=best.params),
        workers=workers,
    )
