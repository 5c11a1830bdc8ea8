"""What is written down of a study: its registration, its budget, the attempts at its trials, its published folds, its workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from storage.record import Attempt, File, Record


@dataclass(frozen=True)
class Registration:
    """A study as it was created: what every worker must agree with."""

    study_id: int
    name: str
    resolved: dict[str, Any]
    """The study file with every default filled in."""
    data_hash: str
    folds_hash: str
    folds_csv: str
    budget_trials: int


@dataclass(frozen=True)
class PublishedFold:
    """A fold whose number is settled."""

    fold: int
    token: str
    """Of the attempt that published it."""
    score: float
    files: tuple[File, ...]


class WorkerState(Record):
    """A worker that holds a claim and shows life."""

    name: str
    device: str
    trial: int
    fold: int | None
    epoch: int | None
    """The last epoch that it finished, from 0."""
    last_heartbeat: datetime


class Budget(Record):
    """Trials asked for, spent and left."""

    asked: int
    spent: int
    """Trials that finished and count: complete, pruned, or failed by their own fault."""
    left: int


def register(
    connection: sa.Connection,
    *,
    study_id: int,
    resolved: Mapping[str, Any],
    data_hash: str,
    folds_hash: str,
    folds_csv: str,
    budget_trials: int,
) -> bool:
    """Write a study down, beside Optuna's row of it; return False, and write nothing, if another process just did."""
    registered = connection.execute(
        sa.text(
            "insert into mammography.study (study_id, resolved, data_hash, folds_hash, folds_csv, budget_trials)"
            " values (:study_id, cast(:resolved as json), :data_hash, :folds_hash, :folds_csv, :budget_trials)"
            " on conflict do nothing"
        ),
        {
            "study_id": study_id,
            "resolved": json.dumps(resolved),
            "data_hash": data_hash,
            "folds_hash": folds_hash,
            "folds_csv": folds_csv,
            "budget_trials": budget_trials,
        },
    )
    return registered.rowcount == 1


def registration(engine: sa.Engine, name: str) -> Registration | None:
    """Return the study of that name, or None."""
    with engine.connect() as connection:
        row = connection.execute(
            sa.text(
                "select study_id, study_name, resolved, data_hash, folds_hash, folds_csv, budget_trials"
                " from mammography.study join studies using (study_id) where study_name = :name"
            ),
            {"name": name},
        ).one_or_none()
    return Registration(*row) if row is not None else None


def study_names(engine: sa.Engine) -> list[str]:
    """Return the names of all studies of ours, in order of their making."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text("select study_name from mammography.study join studies using (study_id) order by study_id")
        )
        return [row[0] for row in rows]


def budget(engine: sa.Engine, study_id: int) -> Budget:
    """Return what was asked for and what is spent."""
    with engine.connect() as connection:
        asked, spent = connection.execute(
            sa.text(
                "select (select budget_trials from mammography.study where study_id = :study), count(*) filter"
                " (where t.state in ('COMPLETE', 'PRUNED', 'FAIL') and coalesce(c.spends_budget, true))"
                " from trials t left join mammography.claim c using (trial_id) where t.study_id = :study"
            ),
            {"study": study_id},
        ).one()
    return Budget(asked=asked, spent=spent, left=max(0, asked - spent))


def workers(engine: sa.Engine, study_id: int, grace_s: float) -> list[WorkerState]:
    """Return who holds a claim in the study and beat within the grace period, by trial."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "select a.worker as name, a.device, t.number as trial, c.fold, c.epoch, c.heartbeat_at as last_heartbeat"
                " from mammography.claim c join mammography.attempt a using (token) join trials t on t.trial_id = c.trial_id"
                " where c.study_id = :study and c.heartbeat_at + make_interval(secs => :grace) > clock_timestamp()"
                " order by t.number"
            ),
            {"study": study_id, "grace": grace_s},
        )
        return [WorkerState.model_validate(dict(row)) for row in rows.mappings()]


def attempts(engine: sa.Engine, trial_id: int) -> list[Attempt]:
    """Return the attempts at a trial, the first one first."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "select number, token, worker, device, started_at, ended_at, ending, epochs"
                " from mammography.attempt where trial_id = :trial order by number"
            ),
            {"trial": trial_id},
        )
        return [
            Attempt(
                number=number,
                token=str(token),
                worker=worker,
                device=device,
                start=start,
                end=end,
                ending=ending,
                epochs={int(fold): epochs_of_fold for fold, epochs_of_fold in sorted(epochs.items())},
            )
            for number, token, worker, device, start, end, ending, epochs in rows
        ]


def published_folds(engine: sa.Engine, trial_id: int) -> dict[int, PublishedFold]:
    """Return the folds of a trial whose numbers are settled."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text("select fold, token, score, files from mammography.fold where trial_id = :trial order by fold"),
            {"trial": trial_id},
        )
        return {
            fold: PublishedFold(fold, str(token), score, tuple(File.model_validate(file) for file in files))
            for fold, token, score, files in rows
        }


def resolution(engine: sa.Engine, trial_id: int) -> dict[str, Any] | None:
    """Return what decided the bits of a trial, or None before its first attempt settled it."""
    with engine.connect() as connection:
        stored: dict[str, Any] | None = connection.execute(
            sa.text("select resolution from mammography.claim where trial_id = :trial"), {"trial": trial_id}
        ).scalar_one_or_none()
    return stored
