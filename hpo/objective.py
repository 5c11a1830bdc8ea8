"""One trial, composed: parameters, configuration, cross-validation, publication, record."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hpo import sampling
from hpo.study import DataPlace, Study, with_embeddings
from storage import ledger
from storage.claims import Claim, Claims
from storage.record import describe_files
from storage.tree import AttemptFolder
from trainer.batches import batch_bounds
from trainer.cli import command_line
from trainer.config import PreprocessingConfig, RunConfig, TrainConfig
from trainer.cross_validation import CrossValidation, cross_validate
from trainer.data.folds import Folds, from_csv
from trainer.data.records import Dataset
from trainer.files import write_text
from trainer.loading import settle_loading
from trainer.protocols import Listener, RunFolder, StopSignal
from trainer.records import EpochRecord, FoldResult, Resolution
from trainer.resolve import Compute, resolve
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
    _opened: dict[tuple[PreprocessingConfig, Path | None], Dataset] = field(default_factory=dict)
    """The data in other forms, which are opened once: to open is to read every file."""

    def data(self, config: TrainConfig) -> tuple[Dataset, Folds]:
        """
        Return the data as *config* wants them, preprocessed and with another backbone's vectors, and the study's folds.

        Raises:
            NotTheStudysEmbeddingsError: The vectors here are others than the study's.
        """
        base, form = self.study.file.train, (config.preprocessing(), config.embeddings_dir)
        if form == (base.preprocessing(), base.embeddings_dir):
            return self.dataset, self.folds
        if form not in self._opened:
            dataset = self.dataset if form[0] == base.preprocessing() else self.place.open(form[0])
            self._opened[form] = with_embeddings(self.study.file, dataset, config.embeddings_dir)
        dataset = self._opened[form]
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
    compute: Compute
    folder: AttemptFolder

    @property
    def seeds(self) -> Seeds:
        """The trial's seeds: from the study's, and the number that the trial has for ever."""
        return Seeds(self.station.study.file.seed, self.claim.number)

    def command(self) -> str:
        """Return the command that trains the same by hand: same code, same configuration, same seeds, same folds."""
        run = RunConfig(
            **self.config.model_dump(),
            **self.station.place.selection.model_dump(),
            csv=self.station.place.csv,
            dicom_root=self.station.place.dicom_root,
            device=self.station.device.type,
            threads=self.compute.resolution.threads,
            micro_batch=self.compute.resolution.micro_batch,
            seed=self.seeds.study,
            trial=self.seeds.trial,
            cv_folds=self.station.study.file.cv.folds,
        )
        return command_line("train-density", run)


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
    dataset, folds = station.data(config)
    settled = station.claims.settle_resolution(
        claim, lambda: resolve(config, dataset, station.device, threads=station.threads).model_dump(mode="json")
    )
    n_batches = len(batch_bounds(folds.largest_training_side, config.batch_size))
    compute = Compute(
        device=station.device,
        resolution=Resolution.model_validate(settled),
        loading=settle_loading(config, dataset, station.device, n_batches),
    )
    read = station.claims.patience.call
    attempts = read(ledger.attempts, study.storage.engine, claim.trial_id)
    published = read(ledger.published_folds, study.storage.engine, claim.trial_id)
    folder = study.folder.trial(claim.number).begin_attempt(
        claim.token,
        [attempt.token for attempt in attempts if attempt.token != claim.token],
        {fold: publication.token for fold, publication in published.items()},
    )
    return Trial(station, claim, params, config, compute, folder)


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
        compute=trial.compute,
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
        compute=trial.compute,
        dataset=dataset,
        folds_hash=folds.hash,
        command=trial.command(),
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )
    write_text(trial.folder.path / "summary.json", summary.model_dump_json(indent=2) + "\n")
    return result


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
