"""
What a dashboard shows of trials, read from Optuna's table and past its cache.

Optuna keeps a finished trial in memory for ever as it was when it was read first; what was attached to it later, by another
worker because its own had died, would stay out of sight until the process ends.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel

from storage.exhibits import ARTIFACT, NOTE


class Artifact(BaseModel):
    """A file in the artifact store, as Optuna writes it down."""

    artifact_id: str
    filename: str
    mimetype: str
    encoding: str | None = None


def notes(engine: sa.Engine, trial_ids: Collection[int]) -> dict[int, str]:
    """Return the notes of those of *trial_ids* that have one."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "select trial_id, value_json from trial_system_attributes where trial_id = any(:trials) and key = :key"
            ),
            {"trials": list(trial_ids), "key": NOTE},
        )
        return {trial_id: json.loads(value) for trial_id, value in rows}


def artifacts(engine: sa.Engine, trial_ids: Collection[int]) -> dict[int, list[Artifact]]:
    """Return the artifacts of those of *trial_ids* that have any."""
    found: dict[int, list[Artifact]] = {}
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "select trial_id, value_json from trial_system_attributes"
                " where trial_id = any(:trials) and key like 'artifacts:%' order by trial_system_attribute_id"
            ),
            {"trials": list(trial_ids)},
        )
        for trial_id, value in rows:
            if (artifact := _artifact(value)) is not None:
                found.setdefault(trial_id, []).append(artifact)
    return found


def artifact(engine: sa.Engine, study_id: int, trial_id: int | None, artifact_id: str) -> Artifact | None:
    """Return one artifact of a trial of that study, or of the study itself where *trial_id* is None; None if there is none."""
    of_study = "select value_json from study_system_attributes where study_id = :study and key = :key"
    of_trial = (
        "select value_json from trials join trial_system_attributes using (trial_id)"
        " where study_id = :study and trial_id = :trial and key = :key"
    )
    with engine.connect() as connection:
        value = connection.execute(
            sa.text(of_study if trial_id is None else of_trial),
            {"study": study_id, "trial": trial_id, "key": f"{ARTIFACT}{artifact_id}"},
        ).scalar_one_or_none()
    return None if value is None else _artifact(value)


def _artifact(value: str) -> Artifact | None:
    """Return what an attribute says; one that was deleted says null."""
    content: Any = json.loads(value)
    if isinstance(content, str):
        content = json.loads(content)
    return None if content is None else Artifact.model_validate(content)
