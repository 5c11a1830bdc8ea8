"""
What a finished trial shows in any optuna-dashboard: its artifacts and its note, as system attributes in Optuna's own table.

Artifacts are written down as `optuna.artifacts.upload_artifact` does it. The note is not kept among the study's attributes,
where optuna-dashboard keeps notes: with 10 000 of them each look at an attribute of the study takes 0.2 s.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from storage.text import storable

NOTE = "mammography:note"
"""The attribute with a trial's note, Markdown. Who has it has all that there is to show."""
CURVES, CONFUSION, TABLE, RECORD = (
    "training_curves.png",
    "confusion_matrix.png",
    "oof_predictions.csv",
    "optuna_trial.json",
)
FILES = {CURVES: "image/png", CONFUSION: "image/png", TABLE: "text/csv", RECORD: "application/json"}
"""What there may be of a trial, with the type of each."""
ARTIFACT = "artifacts:"
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_IDS = """
select substr(key, :after) from trial_system_attributes join trials using (trial_id)
where study_id = :study and key like 'artifacts:%'
union all
select substr(key, :after) from study_system_attributes where study_id = :study and key like 'artifacts:%'
"""


@dataclass(frozen=True)
class Kept:
    """What a study may have in the artifact store."""

    artifact_ids: tuple[str, ...]
    """Attached to the study and its trials, by us or by people: UUIDs, since whoever may write there could write a path."""
    tokens: tuple[str, ...]
    """Of all attempts: one that was killed may have left artifacts that are attached to nothing."""

    def all_ids(self) -> set[str]:
        """Return what every artifact of the study may be called."""
        return {*self.artifact_ids, *(artifact_id(token, filename) for token in self.tokens for filename in FILES)}


def artifact_id(token: str, filename: str) -> str:
    """Return what a file is called in the store: for an attempt's *token* always the same, so that none is there twice."""
    return str(uuid.uuid5(uuid.UUID(token), filename))


def artifact_attribute(artifact_id: str, filename: str) -> tuple[str, str]:
    """Return key and value of the attribute that attaches one of the `FILES`."""
    about = {"artifact_id": artifact_id, "filename": filename, "mimetype": FILES[filename], "encoding": None}
    return f"{ARTIFACT}{artifact_id}", json.dumps(about)


def artifact_ids(attributes: Iterable[str]) -> list[str]:
    """Return the ids of the artifacts among the keys of *attributes*."""
    return [key.removeprefix(ARTIFACT) for key in attributes if key.startswith(ARTIFACT)]


def attributes_text(attributes: Mapping[str, str]) -> str:
    """Return *attributes* as the JSON that the SQL functions take."""
    return json.dumps({key: storable(value) for key, value in attributes.items()})


def unshown(engine: sa.Engine, study_id: int) -> list[int]:
    """Return the ids of the finished trials that show nothing yet, the first one first."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "select trial_id from trials t where study_id = :study and state in ('COMPLETE', 'PRUNED', 'FAIL')"
                " and not exists (select from trial_system_attributes a where a.trial_id = t.trial_id and a.key = :note)"
                " order by trial_id"
            ),
            {"study": study_id, "note": NOTE},
        )
        return [row.trial_id for row in rows]


def attach_late(engine: sa.Engine, trial_id: int, attributes: Mapping[str, str]) -> bool:
    """Attach what a finished trial shows, unless somebody did; return whether it was done now. May be called again."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return bool(
            connection.scalar(
                sa.text("select mammography.attach_late(:trial, cast(:attributes as jsonb))"),
                {"trial": trial_id, "attributes": attributes_text(attributes)},
            )
        )


def reword(engine: sa.Engine, trial_id: int, reason: str) -> None:
    """Put *reason* in place of why a finished trial was pruned or failed, if it says why."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        values = {"trial": trial_id, "reason": storable(reason)}
        connection.execute(sa.text("select mammography.reword(:trial, :reason)"), values)


def exists(engine: sa.Engine, trial_id: int) -> bool:
    """Return whether there is such a trial; its study may have been deleted."""
    with engine.connect() as connection:
        found = connection.scalar(sa.text("select count(*) from trials where trial_id = :trial"), {"trial": trial_id})
        return bool(found)


def kept(connection: sa.Connection, study_id: int) -> Kept:
    """Return what a study may have in the artifact store."""
    ids = connection.execute(sa.text(_IDS), {"study": study_id, "after": len(ARTIFACT) + 1}).scalars().all()
    tokens = connection.execute(
        sa.text("select token::text from mammography.attempt join trials using (trial_id) where study_id = :study"),
        {"study": study_id},
    ).scalars()
    return Kept(tuple(filter(_UUID.fullmatch, ids)), tuple(tokens))
