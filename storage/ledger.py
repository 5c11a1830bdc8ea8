"""What is written down of a study: its registration, its budget, the attempts at its trials, its published folds, its workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from storage.errors import StudyDeletedError
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


@dataclass(frozen=True)
class Limits:
    """When a study ends; None is no limit of that kind."""

    trials: int | None
    hours: float | None = None
    """With at least one worker at work."""
    gpu_hours: float | None = None
    deadline: datetime | None = None
    """Nothing begins after it."""
    configurations: int | None = None
    """Of a finite space."""


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
    images_per_second: float | None
    """Of that epoch."""
    last_heartbeat: datetime


class Spending(Record):
    """Of one kind of budget: asked for, spent and left, in its unit."""

    asked: float
    spent: float
    left: float


class Budget(Record):
    """Trials asked for, spent and left; and hours, GPU-hours and a deadline where they were asked for."""

    asked: int | None
    """None where the study has no budget of trials."""
    spent: int
    """Trials that finished and count: complete, pruned, or failed by their own fault."""
    left: int | None
    hours: Spending | None
    gpu_hours: Spending | None
    deadline: datetime | None
    ended: str | None
    """Why nothing more may begin: spent, exhausted or stopped; None while something may."""
    stop_reason: str | None
    """Of a study that was stopped: asked, or plateau."""


@dataclass(frozen=True)
class Course:
    """What is known of how a trial went."""

    number: int
    finished: bool
    """Nothing of it will change."""
    complete: bool
    scores: dict[int, float]
    """Of the published folds."""
    epochs: dict[int, tuple[float | None, ...]]
    """Balanced accuracy adjusted after each epoch, by fold; None where it does not exist."""


def register(
    connection: sa.Connection,
    *,
    study_id: int,
    resolved: Mapping[str, Any],
    data_hash: str,
    folds_hash: str,
    folds_csv: str,
    limits: Limits,
) -> bool:
    """Write a study down, beside Optuna's row of it; return False, and write nothing, if another process just did."""
    registered = connection.execute(
        sa.text(
            "insert into mammography.study (study_id, resolved, data_hash, folds_hash, folds_csv, budget_trials,"
            " budget_hours, budget_gpu_hours, deadline, configurations)"
            " values (:study_id, cast(:resolved as json), :data_hash, :folds_hash, :folds_csv, :trials,"
            " :hours, :gpu_hours, :deadline, :configurations)"
            " on conflict do nothing"
        ),
        {
            "study_id": study_id,
            "resolved": json.dumps(resolved),
            "data_hash": data_hash,
            "folds_hash": folds_hash,
            "folds_csv": folds_csv,
            **vars(limits),
        },
    )
    if registered.rowcount == 1:
        connection.execute(sa.text("insert into mammography.settled (study_id) values (:id)"), {"id": study_id})
    return registered.rowcount == 1


def registration(engine: sa.Engine, name: str) -> Registration | None:
    """Return the study of that name, or None."""
    with engine.connect() as connection:
        row = connection.execute(
            sa.text(
                "select study_id, study_name, resolved, data_hash, folds_hash, folds_csv"
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
    """Return what was asked for and what is spent. Raises StudyDeletedError."""
    with engine.connect() as connection:
        row = connection.execute(
            sa.text(
                "select s.budget_trials, t.spent, s.budget_hours, t.busy_s / 3600 as hours, s.budget_gpu_hours,"
                " t.gpu_s / 3600 as gpu_hours, s.deadline, s.stop_reason, mammography.limit_reached(s.study_id) as ended"
                " from mammography.study s, mammography.tally(s.study_id) t where s.study_id = :study"
            ),
            {"study": study_id},
        ).one_or_none()
    if row is None:
        raise StudyDeletedError
    return Budget(
        asked=row.budget_trials,
        spent=row.spent,
        left=None if row.budget_trials is None else max(0, row.budget_trials - row.spent),
        hours=_spending(row.budget_hours, row.hours),
        gpu_hours=_spending(row.budget_gpu_hours, row.gpu_hours),
        deadline=row.deadline,
        ended=row.ended,
        stop_reason=row.stop_reason,
    )


def _spending(asked: float | None, spent: float) -> Spending | None:
    return None if asked is None else Spending(asked=asked, spent=spent, left=max(0.0, asked - spent))


def repair(engine: sa.Engine, study_id: int, grace_s: float) -> None:
    """Free what dead workers hold, for a process that claims nothing itself."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(
            sa.text("select mammography.repair_alone(:study, make_interval(secs => :grace))"),
            {"study": study_id, "grace": grace_s},
        )


def workers(engine: sa.Engine, study_id: int, grace_s: float) -> list[WorkerState]:
    """Return who holds a claim in the study and beat within the grace period, by trial."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "select a.worker as name, a.device, t.number as trial, c.fold, c.epoch, c.images_per_second,"
                " c.heartbeat_at as last_heartbeat"
                " from mammography.claim c join mammography.attempt a using (token) join trials t on t.trial_id = c.trial_id"
                " where c.study_id = :study and c.heartbeat_at + make_interval(secs => :grace) > clock_timestamp()"
                " order by t.number"
            ),
            {"study": study_id, "grace": grace_s},
        )
        return [WorkerState.model_validate(dict(row)) for row in rows.mappings()]


def left_over(engine: sa.Engine, study_id: int) -> dict[str, int]:
    """Return how many trials were begun and are nobody's now, by the kind of device that can go on with them."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "select c.device_kind, count(*) as trials from mammography.claim c join trials t using (trial_id)"
                " where c.study_id = :study and t.state = 'RUNNING' and c.token is null and c.device_kind is not null"
                " and t.trial_id > (select trial_id from mammography.settled where study_id = :study)"
                " group by c.device_kind order by c.device_kind"
            ),
            {"study": study_id},
        )
        return {row.device_kind: row.trials for row in rows}


def attempts(engine: sa.Engine, trial_id: int) -> list[Attempt]:
    """Return the attempts at a trial, the first one first."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "select a.number, a.token, a.worker, a.device, a.gpus, a.environment, a.started_at, a.ended_at, a.ending,"
                " array_agg(array[e.fold, e.epoch] order by e.fold, e.epoch) filter (where e.fold is not null) as epochs"
                " from mammography.attempt a left join mammography.epoch e using (token)"
                " where a.trial_id = :trial group by a.trial_id, a.number order by a.number"
            ),
            {"trial": trial_id},
        ).all()
    return [
        Attempt(
            number=row.number,
            token=str(row.token),
            worker=row.worker,
            device=row.device,
            gpus=row.gpus,
            environment=row.environment,
            start=row.started_at,
            end=row.ended_at,
            ending=row.ending,
            epochs=_by_fold(row.epochs or []),
        )
        for row in rows
    ]


def _by_fold(epochs: list[list[int]]) -> dict[int, list[int]]:
    by_fold: dict[int, list[int]] = {}
    for fold, epoch in epochs:
        by_fold.setdefault(fold, []).append(epoch)
    return by_fold


def courses(engine: sa.Engine, study_id: int, *, first: int = 0) -> list[Course]:
    """Return how the trials of a study went, from number *first* on, in order of number."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "select t.number, t.state in ('COMPLETE', 'PRUNED', 'FAIL') as finished, t.state = 'COMPLETE' as complete,"
                " (select jsonb_object_agg(step, intermediate_value) from trial_intermediate_values v"
                "  where v.trial_id = t.trial_id) as scores,"
                " (select jsonb_agg(jsonb_build_array(fold, epoch, score) order by fold, epoch) from"
                "  (select distinct on (fold, epoch) fold, epoch, score from mammography.epoch e"
                "   where e.trial_id = t.trial_id) one) as epochs"
                " from trials t where t.study_id = :study and t.number >= :first order by t.number"
            ),
            {"study": study_id, "first": first},
        ).all()
    return [
        Course(
            number=row.number,
            finished=row.finished,
            complete=row.complete,
            scores={int(fold): score for fold, score in sorted((row.scores or {}).items())},
            epochs=_curves(row.epochs or []),
        )
        for row in rows
    ]


def _curves(epochs: list[tuple[int, int, float | None]]) -> dict[int, tuple[float | None, ...]]:
    """Return the curve of each fold, as far as no epoch is missing in it."""
    curves: dict[int, tuple[float | None, ...]] = {}
    for fold, epoch, score in epochs:
        if epoch == len(curves.get(fold, ())):
            curves[fold] = (*curves.get(fold, ()), score)
    return curves


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
