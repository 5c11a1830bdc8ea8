"""Everything that is known of a study at one moment, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from optuna.trial import FrozenTrial
from pydantic import ValidationError

from hpo import study as studies
from hpo.report.identifiers import Identifiers
from hpo.status import Status, status
from hpo.study import Study
from storage import ledger
from storage.ledger import Course
from storage.record import StudyRecord
from storage.summaries import AttemptInBrief, attempts_by_trial
from trainer.data.records import Rejection
from trainer.data.report import read_report


@dataclass(frozen=True)
class Findings:
    """A study at one moment."""

    study: Study
    at: datetime
    status: Status
    trials: list[FrozenTrial]
    """In order of their numbers."""
    ranked: list[FrozenTrial]
    """Those that finished all their folds, the best first."""
    attempts: Mapping[int, list[AttemptInBrief]]
    """By the trial's number; none of a trial that was never tried here."""
    courses: Mapping[int, Course]
    """By the trial's number."""
    record: StudyRecord | None
    """The content of `study.json`, where it is there."""
    rejections: list[Rejection] | None
    """The content of `data_report.csv`, where it is there."""
    identifiers: Identifiers

    @property
    def n_folds(self) -> int:
        """Folds of a trial."""
        return self.study.file.cv.folds

    @property
    def all_attempts(self) -> list[AttemptInBrief]:
        """The attempts at all trials."""
        return [attempt for each in self.attempts.values() for attempt in each]


def read(study: Study) -> Findings:
    """Return what is known of *study* now. Raises StudyDeletedError."""
    engine, study_id = study.storage.engine, study.registration.study_id
    rejections = _rejections(study)
    trials = study.trials
    paths = [rejection.path for rejection in rejections or ()]
    return Findings(
        study=study,
        at=datetime.now(UTC),
        status=status(study),
        trials=trials,
        ranked=studies.ranking(study),
        attempts=attempts_by_trial(engine, study_id),
        courses={course.number: course for course in ledger.courses(engine, study_id)},
        record=_record(study),
        rejections=rejections,
        identifiers=Identifiers.of(study.registration.folds_csv, paths),
    )


def _record(study: Study) -> StudyRecord | None:
    try:
        return StudyRecord.model_validate_json(study.folder.record.read_bytes())
    except (OSError, ValidationError):  # the folder is gone, or an older program's: the page says what it lacks
        return None


def _rejections(study: Study) -> list[Rejection] | None:
    try:
        return read_report(study.folder.data_report)
    except (OSError, KeyError, ValueError):  # as above
        return None
