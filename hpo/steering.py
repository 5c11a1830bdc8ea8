"""What people change in a study while it runs: its queue, its limits, its end."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hpo.assignment import check_queued, parse_assignments
from hpo.study import Study
from storage import ledger, steering
from storage.artifact_store import ArtifactStore, remove_all
from storage.errors import ArtifactStoreError, LimitError
from storage.heartbeat import GRACE_S
from storage.ledger import Budget

_MOST_TRIALS = 10**9
ASKED = "asked"
"""Why a study is stopped that somebody stopped."""


def enqueue(study: Study, assignments: Sequence[str]) -> int:
    """
    Queue the configuration in *assignments*, such as ``lr=0.001``, and return its trial's number; the sampler completes it.

    Raises:
        QueuedValueError: The space does not have it.
        ConfigurationTakenError: A trial has it already.
    """
    params = parse_assignments(study.space, assignments)
    check_queued(study.space, params)
    whole = study.space.contains(params)
    return steering.enqueue(study.storage.engine, study.registration.study_id, params, whole=whole)


def extend(
    study: Study,
    *,
    trials: int | None = None,
    hours: float | None = None,
    gpu_hours: float | None = None,
    deadline: datetime | None = None,
) -> Budget:
    """
    Give a study so much more of what it has a limit of, or a later deadline, and return what its limits are now.

    A study that was stopped goes on.

    Raises:
        LimitError: It has no such limit, or its deadline is not earlier.
    """
    now = budget(study)
    has = {"trials": now.asked, "hours": now.hours, "gpu_hours": now.gpu_hours, "deadline": now.deadline}
    for limit, more in (("trials", trials), ("hours", hours), ("gpu_hours", gpu_hours), ("deadline", deadline)):
        if more is not None and has[limit] is None:
            others = ", ".join(name for name, asked in has.items() if asked is not None)
            raise LimitError(study.name, limit, f"there is no such limit to extend; it has {others or 'none'}")
    if trials is not None and now.asked is not None and now.asked + trials > _MOST_TRIALS:
        raise LimitError(study.name, "trials", f"cannot be more than {_MOST_TRIALS}; there are {now.asked}")
    if deadline is not None and now.deadline is not None and deadline <= now.deadline:
        raise LimitError(study.name, "deadline", f"is {now.deadline.isoformat()}; expected a later moment")
    engine, study_id = study.storage.engine, study.registration.study_id
    steering.extend(engine, study_id, trials=trials, hours=hours, gpu_hours=gpu_hours, deadline=deadline)
    return budget(study)


def budget(study: Study) -> Budget:
    """Return a study's limits and what is spent of them."""
    return ledger.budget(study.storage.engine, study.registration.study_id)


def stop(study: Study) -> None:
    """Let nothing more begin in a study; what has begun is finished."""
    steering.stop(study.storage.engine, study.registration.study_id, ASKED)


def delete(study: Study, store: ArtifactStore) -> ArtifactStoreError | None:
    """
    Remove a study: its rows from the database, its artifacts from *store*, and its output folder.

    In this order: the rows go under the lock of every claim, and nobody who then begins to show a trial finds one. Return why
    artifacts had to be left, of a store that is away or gone; None if all are removed. Decoded data stay: other studies may
    use them.

    Raises:
        StudyInUseError: Workers are at work on it; nothing is removed.
    """
    engine, study_id = study.storage.engine, study.registration.study_id
    kept = steering.delete(engine, study_id, study.name, GRACE_S)
    left: ArtifactStoreError | None = None
    try:
        remove_all(store, kept.all_ids())
    except ArtifactStoreError as error:
        left = error
    _remove_folder(study.folder.path)
    return left


def _remove_folder(path: Path) -> None:
    """Remove a folder and what is below it; of a link the link alone, for what it points to is not ours."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
