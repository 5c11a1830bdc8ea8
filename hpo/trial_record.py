"""
`optuna_trial.json` of a finished trial, from the database and its folder.

The worker that finishes a trial writes it before it tells the database, into the attempt's folder, from where it takes its
place with the trial's other files. Where no worker came that far, whoever is idle writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial

from hpo.station import Station
from hpo.trial import Trial
from hpo.worker import Outcome
from storage import ledger
from storage.claims import Ending
from storage.ledger import PublishedFold
from storage.record import Attempt, File, TrialRecord, TrialStateName, describe_file
from trainer.files import write_text
from trainer.seeds import Seeds

_NAME = "optuna_trial.json"


def write_ending(trial: Trial, outcome: Outcome) -> TrialRecord:
    """Write the record of a trial that is about to be finished into the folder of its attempt, and return it."""
    station, claim = trial.station, trial.claim
    now = datetime.now(UTC)
    engine = station.study.storage.engine
    attempts = [
        attempt.model_copy(update={"end": now, "ending": str(outcome.ending)})
        if attempt.token == claim.token
        else attempt
        for attempt in station.claims.patience.call(ledger.attempts, engine, claim.trial_id)
    ]
    published = station.claims.patience.call(ledger.published_folds, engine, claim.trial_id)
    record = _record(
        station,
        claim.number,
        state=outcome.ending.value,
        value=outcome.value,
        reason=outcome.reason,
        params=trial.params,
        resolution=trial.compute.resolution.model_dump(mode="json"),
        attempts=attempts,
        published=published,
        finished_at=now,
        files=_files_of_trial(trial.folder.path),
    )
    _write(trial.folder.path / _NAME, record)
    return record


def agrees(record: TrialRecord, trial: FrozenTrial) -> bool:
    """Return whether *record* says of a finished trial what the database says: its attempt may have died before it was told."""
    return (record.state, record.value) == (trial.state.name.lower(), trial.value)


def complete_folder(station: Station, trial: FrozenTrial) -> None:
    """
    Complete the folder of a finished trial: its last attempt's files in their place, and its record.

    Nothing is done where nothing is missing, nor for a trial that no worker of ours has attempted: another study's, whose files
    are there, or a script's.
    """
    study = station.study
    folder = study.folder.trial(trial.number)
    if folder.record.exists() and not folder.unpromoted():
        return
    engine, trial_id = study.storage.engine, trial._trial_id  # noqa: SLF001 - Optuna has no public name for it
    read = station.claims.patience.call
    attempts = read(ledger.attempts, engine, trial_id)
    if not attempts or (trial.params and not study.space.contains(trial.params)):
        return
    published = read(ledger.published_folds, engine, trial_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.settle_folds({fold: publication.token for fold, publication in published.items()})
    for written in (folder.attempt_path(attempts[-1].token) / _NAME, folder.record):
        if written.is_file() and not _agrees_at(written, trial):
            written.unlink(missing_ok=True)  # another worker tidies up at the same moment
    folder.promote(attempts[-1].token)
    if not folder.record.exists():
        write_anew(station, trial)


def write_anew(station: Station, trial: FrozenTrial) -> TrialRecord:
    """Write the record of a finished trial as the database knows it into the trial's folder, and return it."""
    study = station.study
    folder = study.folder.trial(trial.number)
    engine, trial_id = study.storage.engine, trial._trial_id  # noqa: SLF001 - Optuna has no public name for it
    read = station.claims.patience.call
    record = _record(
        station,
        trial.number,
        state=trial.state.name.lower(),
        value=trial.value,
        reason=trial.user_attrs.get("reason"),
        params=trial.params,
        resolution=read(ledger.resolution, engine, trial_id),
        attempts=read(ledger.attempts, engine, trial_id),
        published=read(ledger.published_folds, engine, trial_id),
        finished_at=None if trial.datetime_complete is None else trial.datetime_complete.astimezone(UTC),
        files=_files_of_trial(folder.path),
    )
    _write(folder.record, record)
    return record


def _agrees_at(path: Path, trial: FrozenTrial) -> bool:
    """Return whether the record at *path* can be read and agrees."""
    try:
        return agrees(TrialRecord.model_validate_json(path.read_bytes()), trial)
    except ValueError:
        return False


def _record(
    station: Station,
    number: int,
    *,
    state: str,
    value: float | None,
    reason: str | None,
    params: Mapping[str, Any],
    resolution: dict[str, Any] | None,
    attempts: list[Attempt],
    published: Mapping[int, PublishedFold],
    finished_at: datetime | None,
    files: list[File],
) -> TrialRecord:
    study = station.study
    config = study.space.configure(params)
    dataset, _ = station.data(config)
    n_folds = study.file.cv.folds
    seeds = Seeds(study.file.seed, number)
    settled = resolution or {}
    environment = attempts[-1].environment if attempts else {}
    return TrialRecord(
        study=study.name,
        number=number,
        root_number=number,
        attempts=attempts,
        state=cast("TrialStateName", state),
        reason=reason,
        value=value,
        params=dict(params),
        distributions={
            name: distribution_to_json(distribution) for name, distribution in study.space.distributions(params).items()
        },
        fold_scores=[published[fold].score if fold in published else None for fold in range(n_folds)],
        n_folds_done=len(published),
        pruned_at=max(published, default=None) if state == Ending.PRUNED else None,
        config=config.model_dump(mode="json"),
        seeds={"study": seeds.study, "trial": seeds.trial, "folds": [seeds.fold(fold) for fold in range(n_folds)]},
        threads=settled.get("threads"),
        resolution=resolution,
        versions=environment.get("versions", {}),
        git_commit=environment.get("git_commit"),
        data_hash=dataset.data_hash,
        embeddings_hash=dataset.features_hash,
        folds_hash=study.registration.folds_hash,
        device=settled.get("device_kind"),
        gpu_seconds=_gpu_seconds(attempts),
        started_at=attempts[0].start if attempts else None,
        finished_at=finished_at,
        artifacts=[*(file for publication in published.values() for file in publication.files), *files],
    )


def _files_of_trial(folder: Path) -> list[File]:
    """Return the files that concern the whole trial, but for the record itself."""
    return [
        describe_file(path, path.name) for path in sorted(folder.iterdir()) if path.is_file() and path.name != _NAME
    ]


def _gpu_seconds(attempts: list[Attempt]) -> float:
    """Return the GPU-seconds of attempts, by their share of it; those that were lost count up to their last heartbeat."""
    return sum(
        attempt.gpus * (attempt.end - attempt.start).total_seconds() for attempt in attempts if attempt.end is not None
    )


def _write(path: Path, record: TrialRecord) -> None:
    write_text(path, record.model_dump_json(indent=2) + "\n")
