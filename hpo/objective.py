"""One trial, composed: parameters, configuration, cross-validation, publication, record."""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from optuna.distributions import distribution_to_json

from hpo import sampling
from hpo.study import DataPlace, Study
from storage import ledger
from storage.claims import Claim, Claims, Ending
from storage.record import Attempt, File, TrialRecord, TrialStateName, describe_file, describe_files
from storage.tree import AttemptFolder
from trainer.cli import to_flags
from trainer.config import RunConfig, TrainConfig
from trainer.cross_validation import CrossValidation, cross_validate
from trainer.data.folds import Folds, from_csv
from trainer.data.records import Dataset
from trainer.files import write_text
from trainer.protocols import Listener, RunFolder, StopSignal
from trainer.provenance import commit, versions
from trainer.records import EpochRecord, FoldResult, Resolution
from trainer.resolve import resolve
from trainer.seeds import Seeds
from trainer.summary import summarise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Station:
    """Where a worker works: what it needs for every trial and does not change between them."""

    study: Study
    claims: Claims
    place: DataPlace
    dataset: Dataset
    """The study's data, with the preprocessing of its base configuration."""
    folds: Folds
    device: torch.device
    threads: int | None
    """Processor threads of a step, for trials that this worker begins; None for all cores."""

    def data(self, config: TrainConfig) -> tuple[Dataset, Folds]:
        """Return the data as *config* wants them preprocessed, with the study's folds."""
        if config.preprocessing() == self.study.file.train.preprocessing():
            return self.dataset, self.folds
        dataset = self.place.open(config.preprocessing())
        return dataset, from_csv(self.study.registration.folds_csv, dataset)


@dataclass(frozen=True)
class Publisher:
    """Hears of epochs and folds from the trainer, and makes them part of the trial under its claim."""

    claims: Claims
    claim: Claim
    folder: AttemptFolder

    def epoch_finished(self, fold: int, record: EpochRecord) -> None:
        """Show that the trial advances. Raises TakenOverError."""
        self.claims.progress(self.claim, fold, record.epoch)

    def fold_finished(self, result: FoldResult) -> None:
        """Settle the fold's number in the database, then put its files in their place. Raises TakenOverError."""
        if result.score is None:
            raise ValueError(f"fold {result.fold} has no score: its validation set is empty or of one class")
        place = self.folder.fold(result.fold)
        files = describe_files(place, prefix=f"{place.name}/")
        self.claims.publish_fold(self.claim, result.fold, result.score, files)
        self.folder.publish(result.fold)


@dataclass(frozen=True)
class Trial:
    """A claimed trial with everything settled that its attempts share."""

    station: Station
    claim: Claim
    params: dict[str, Any]
    config: TrainConfig
    resolution: Resolution
    attempts: tuple[Attempt, ...]
    folder: AttemptFolder

    @property
    def seeds(self) -> Seeds:
        """The trial's seeds: from the study's, and the number that the trial has for ever."""
        return Seeds(self.station.study.file.seed, self.claim.number)

    def command(self) -> str:
        """Return the command that trains the same by hand: same code, same configuration, same seeds, same folds."""
        run = RunConfig(
            **self.config.model_dump(),
            csv=self.station.place.csv,
            dicom_root=self.station.place.dicom_root,
            max_rejected=self.station.place.max_rejected,
            device=self.station.device.type,
            threads=self.resolution.threads,
            seed=self.seeds.study,
            trial=self.seeds.trial,
            cv_folds=self.station.study.file.cv.folds,
        )
        return shlex.join(["mammography", "train-density", *to_flags(run)])


def begin(station: Station, claim: Claim) -> Trial:
    """
    Settle the parameters and what decides the bits, as the first attempt did, and make the attempt's folder.

    Raises:
        TakenOverError: The claim is somebody else's by now.
    """
    study = station.study
    params = sampling.settle_parameters(
        station.claims,
        claim,
        study.storage.optuna,
        study_name=study.name,
        study_seed=study.file.seed,
        section=study.file.sampler,
        space=study.space,
    )
    config = study.space.configure(params)
    settled = station.claims.settle_resolution(
        claim, resolve(config, station.device, station.threads).model_dump(mode="json")
    )
    read = station.claims.patience.call
    attempts = tuple(read(ledger.attempts, study.storage.engine, claim.trial_id))
    published = read(ledger.published_folds, study.storage.engine, claim.trial_id)
    folder = study.folder.trial(claim.number).begin_attempt(
        claim.token,
        [attempt.token for attempt in attempts if attempt.token != claim.token],
        {fold: publication.token for fold, publication in published.items()},
    )
    return Trial(station, claim, params, config, Resolution.model_validate(settled), attempts, folder)


def train(trial: Trial, stop: StopSignal) -> CrossValidation:
    """Train the folds that are not published yet, publish them, and write what concerns the whole trial."""
    station = trial.station
    started_at = datetime.now(UTC)
    dataset, folds = station.data(trial.config)
    result = cross_validate(
        trial.config,
        dataset,
        folds,
        trial.seeds,
        device=station.device,
        resolution=trial.resolution,
        folder=trial.folder,
        listener=Publisher(station.claims, trial.claim, trial.folder),
        stop=stop,
    )
    summary = summarise(
        trial.config,
        result.folds,
        value=result.value,
        cross_validated=True,
        seed=station.study.file.seed,
        resolution=trial.resolution,
        data_hash=dataset.data_hash,
        folds_hash=folds.hash,
        rejected=dataset.rejected(),
        command=trial.command(),
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )
    write_text(trial.folder.path / "summary.json", summary.model_dump_json(indent=2) + "\n")
    return result


def write_record(trial: Trial, ending: Ending, *, value: float | None, reason: str | None) -> None:
    """Write `optuna_trial.json` into the attempt's folder, from where finishing the trial puts it in its place."""
    study = trial.station.study
    engine = study.storage.engine
    finished_at = datetime.now(UTC)
    read = trial.station.claims.patience.call
    published = read(ledger.published_folds, engine, trial.claim.trial_id)
    attempts = [
        attempt.model_copy(update={"end": finished_at, "ending": str(ending)})
        if attempt.token == trial.claim.token
        else attempt
        for attempt in read(ledger.attempts, engine, trial.claim.trial_id)
    ]
    dataset, _ = trial.station.data(trial.config)
    record = TrialRecord(
        study=study.name,
        number=trial.claim.number,
        root_number=trial.claim.number,
        attempts=attempts,
        state=cast("TrialStateName", ending.value),  # the endings that finish a trial are called like its states
        reason=reason,
        value=value,
        params=trial.params,
        distributions={
            name: distribution_to_json(distribution)
            for name, distribution in study.space.distributions(trial.params).items()
        },
        fold_scores=[published[fold].score if fold in published else None for fold in range(study.file.cv.folds)],
        n_folds_done=len(published),
        pruned_at=max(published, default=None) if ending is Ending.PRUNED else None,
        config=trial.config.model_dump(mode="json"),
        seeds={
            "study": study.file.seed,
            "trial": trial.claim.number,
            "folds": [trial.seeds.fold(fold) for fold in range(study.file.cv.folds)],
        },
        threads=trial.resolution.threads,
        resolution=trial.resolution.model_dump(mode="json"),
        versions=versions(),
        git_commit=commit().git_commit,
        data_hash=dataset.data_hash,
        folds_hash=study.registration.folds_hash,
        device=trial.resolution.device_kind,
        gpu_seconds=_gpu_seconds(attempts),
        started_at=attempts[0].start,
        finished_at=finished_at,
        artifacts=_artifacts(trial, [file for publication in published.values() for file in publication.files]),
    )
    write_text(trial.folder.path / "optuna_trial.json", record.model_dump_json(indent=2) + "\n")


def _gpu_seconds(attempts: list[Attempt]) -> float:
    """Return the seconds that attempts held a GPU; those that were lost count up to where they are known to have ended."""
    return sum(
        (attempt.end - attempt.start).total_seconds()
        for attempt in attempts
        if attempt.end is not None and attempt.device != "cpu"
    )


def _artifacts(trial: Trial, of_folds: list[File]) -> list[File]:
    """Return all files of the trial but the record itself: those of its folds, and those of the whole."""
    of_trial = [
        describe_file(path, path.name)
        for path in sorted(trial.folder.path.iterdir())
        if path.is_file() and path.name != "optuna_trial.json"
    ]
    return [*of_folds, *of_trial]


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write every log line of this process into the file at *path* too, while the block runs."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


@dataclass(frozen=True)
class EitherSignal:
    """Set when one of two events is: somebody asked the worker to stop, or the claim was lost."""

    first: threading.Event
    second: threading.Event

    def is_set(self) -> bool:
        """Return whether to stop."""
        return self.first.is_set() or self.second.is_set()


def _fits(folder: AttemptFolder, publisher: Publisher, signal: EitherSignal) -> tuple[RunFolder, Listener, StopSignal]:
    """Let the type checker compare what storage has with what the trainer asks for."""
    return folder, publisher, signal
