"""What people change in a study while it runs: its queue, its limits, its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from storage.claims import canonical, stored_parameters
from storage.errors import ConfigurationTakenError, StudyInUseError
from storage.exhibits import Kept, kept

_OF_TRIALS = (
    "mammography.claim",  # first, as everywhere: its lock comes before its trial's
    "trial_params",
    "trial_values",
    "trial_intermediate_values",
    "trial_user_attributes",
    "trial_system_attributes",
    "trial_heartbeats",
)
_OF_STUDIES = ("trials", "study_user_attributes", "study_system_attributes", "study_directions", "studies")


def enqueue(engine: sa.Engine, study_id: int, fixed: Mapping[str, Any], *, whole: bool) -> int:
    """
    Queue a configuration, to be tried before anything new, and return its trial's number.

    Args:
        engine: To the database.
        study_id: Of the study.
        fixed: Values by name; checked against the space before.
        whole: Whether they are a whole configuration, and not a part that the sampler completes.

    Raises:
        ConfigurationTakenError: A trial of the study has the whole configuration already.
    """
    number, twin = _row(
        engine,
        "select number, twin from mammography.enqueue(:study, :fixed, :configuration)",
        study=study_id,
        fixed=json.dumps(dict(fixed)),
        configuration=canonical(fixed) if whole else None,
    )
    if twin is not None:
        raise ConfigurationTakenError(twin)
    return int(number)


def add_finished(
    engine: sa.Engine,
    study_id: int,
    *,
    state: TrialState,
    value: float | None,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    scores: Mapping[int, float],
    attributes: Mapping[str, Any],
) -> int | None:
    """
    Add a finished trial of another study: sampler and pruning learn from it, the budget does not pay for it.

    Return its number here; None, and nothing added, if a trial of this study has its configuration.
    """
    number: int | None = _row(
        engine,
        "select mammography.add_finished(:study, :state, :value, :configuration, cast(:params as jsonb),"
        " cast(:scores as jsonb), cast(:attributes as jsonb))",
        study=study_id,
        state=state.name,
        value=value,
        configuration=canonical(params),
        params=stored_parameters(params, distributions),
        scores=json.dumps({str(fold): score for fold, score in scores.items()}),
        attributes=json.dumps(dict(attributes)),
    )[0]
    return number


def extend(
    engine: sa.Engine,
    study_id: int,
    *,
    trials: int | None = None,
    hours: float | None = None,
    gpu_hours: float | None = None,
    deadline: datetime | None = None,
) -> None:
    """Give a study more to do, of what it has a budget of; a study that was stopped goes on."""
    _row(
        engine,
        "select mammography.extend(:study, :trials, :hours, :gpu_hours, :deadline)",
        study=study_id,
        trials=trials,
        hours=hours,
        gpu_hours=gpu_hours,
        deadline=deadline,
    )


def stop(engine: sa.Engine, study_id: int, reason: str) -> None:
    """Let nothing more begin in a study, for this *reason*; what has begun is finished."""
    _row(engine, "select mammography.stop(:study, :reason)", study=study_id, reason=reason)


def _check_idle(connection: sa.Connection, study_id: int, name: str, grace_s: float) -> None:
    at_work = connection.scalar(
        sa.text(
            "select count(*) from mammography.claim where study_id = :study and token is not null"
            " and heartbeat_at + make_interval(secs => :grace) > clock_timestamp()"
        ),
        {"study": study_id, "grace": grace_s},
    )
    if at_work:
        raise StudyInUseError(name, at_work)


def delete(engine: sa.Engine, study_id: int, name: str, grace_s: float) -> Kept:
    """
    Remove a study from the database, Optuna's rows of it and ours; return what it may have left in the artifact store.

    Optuna's own deletion asks for every trial one by one, 5 ms each, and would not end within a transaction's time where there
    are 10 000. Nor could it look for workers under the lock that every claim takes: here nobody begins in between.

    Raises:
        StudyInUseError: A worker that holds a claim has shown life within the grace period; nothing is removed.
    """
    values = {"study": study_id}
    with engine.begin() as connection:
        connection.execute(sa.text("select from studies where study_id = :study for update"), values)
        _check_idle(connection, study_id, name, grace_s)
        left = kept(connection, study_id)
        for table in _OF_TRIALS:
            of_study = "trial_id in (select trial_id from trials where study_id = :study)"
            connection.execute(sa.text(f"delete from {table} where {of_study}"), values)  # nosec # noqa: S608 - names from above
        for table in _OF_STUDIES:
            connection.execute(sa.text(f"delete from {table} where study_id = :study"), values)  # nosec # noqa: S608 - the same
    return left


def _row(engine: sa.Engine, statement: str, **values: Any) -> tuple[Any, ...]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return tuple(connection.execute(sa.text(statement), values).one())
