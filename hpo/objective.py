"""One trial, composed: parameters, configuration, cross-validation, pruning, publication, record."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from hpo import sampling, trial_record
from hpo.errors import TrialPrunedError
from hpo.gallery import Gallery
from hpo.hang import Pulse
from hpo.plateau import plateaued
from hpo.pruning import Curves, Pruning, make_pruning
from hpo.station import Station
from hpo.study import Study
from hpo.trial import Trial
from hpo.worker import Attention, Outcome, Work
from storage import ledger, steering
from storage.claims import Claim, Claims, Ending, Progress
from storage.errors import FolderVanishedError
from storage.outbox import Outbox
from storage.record import describe_files
from storage.tree import AttemptFolder
from trainer.batches import batch_bounds
from trainer.cross_validation import CrossValidation, cross_validate
from trainer.files import write_text
from trainer.loading import settle_loading
from trainer.protocols import Listener, RunFolder, StopSignal
from trainer.records import EpochRecord, FoldResult, Resolution
from trainer.resolve import Compute, resolve
from trainer.run_log import log_to
from trainer.summary import summarise

logger = logging.getLogger(__name__)

_JUDGEMENT_S = 5.0
"""How long a trial that may be given up waits for the database to hear of its last epoch."""


@dataclass
class Courses:
    """How the trials of a study went, of which those up to the first unfinished one are read once."""

    claims: Claims
    _finished: list[Curves] = field(default_factory=list)
    """By number, without a gap."""

    def read(self) -> list[Curves]:
        """Return what is known of all trials by now, in order of their numbers."""
        claims = self.claims
        found = claims.patience.call(ledger.courses, claims.engine, claims.study_id, first=len(self._finished))
        curves = [Curves(each.number, each.complete, each.scores, each.epochs) for each in found]
        known = [*self._finished, *curves]
        settled = itertools.takewhile(lambda pair: pair[0].finished, zip(found, curves, strict=True))
        self._finished.extend(curve for _, curve in settled)
        return known


@dataclass(frozen=True)
class Publisher:
    """Hears of epochs and folds from the trainer, makes them part of the trial under its claim, and gives hopeless trials up."""

    study: Study
    claims: Claims
    claim: Claim
    folder: AttemptFolder
    pruning: Pruning
    courses: Courses
    pulse: Pulse
    outbox: Outbox = field(default_factory=Outbox)
    """Epochs are told while the next ones are trained: a database that is away holds up no training."""

    def epoch_finished(self, fold: int, record: EpochRecord, *, last: bool) -> None:
        """
        Show that the trial advances.

        Raises:
            TakenOverError: It is another attempt's by now.
            TrialPrunedError: It is given up.
        """
        self.pulse.epoch(record.seconds)
        self.outbox.put(lambda: self.claims.advance(self.claim, _progress(fold, record)))
        self._judge_epoch(fold, record.epoch, last=last)

    def fold_resumed(self, fold: int, history: Sequence[EpochRecord], *, last: bool) -> None:
        """Make up for what an earlier attempt saved and may not have told. Raises as `epoch_finished` does."""
        for record in history:
            self.pulse.epoch(record.seconds)
            self.claims.resume(self.claim, _progress(fold, record))
        self._judge_epoch(fold, history[-1].epoch, last=last)

    def fold_finished(self, result: FoldResult) -> None:
        """Settle the fold's number in the database, then put its files in their place. Raises as `epoch_finished` does."""
        if result.score is None:
            raise ValueError(f"fold {result.fold} has no score: its validation set is empty or of one class")
        place = self.folder.fold(result.fold)
        self.outbox.flush()
        files = describe_files(place, prefix=f"{place.name}/")
        self.claims.publish_fold(self.claim, result.fold, result.score, files)
        self.folder.publish(result.fold)
        self.judge_fold(result.fold)

    def judge_fold(self, fold: int) -> None:
        """Give the trial up if the folds up to *fold* leave no hope. Raises TrialPrunedError."""
        if fold < self.study.file.cv.folds - 1 and self.study.file.pruning.asked:
            self._raise(self.pruning.after_fold(*self._courses(), fold))

    def _judge_epoch(self, fold: int, epoch: int, *, last: bool) -> None:
        """Give the trial up if the fold's curve leaves no hope; after its last epoch there is nothing left to save."""
        # While the database is away the trial goes on without a judgement.
        if not last and self.pruning.looks_after_epoch(fold, epoch) and self.outbox.flush(_JUDGEMENT_S):
            self._raise(self.pruning.after_epoch(*self._courses(), fold, epoch))

    def _courses(self) -> tuple[Curves, list[Curves]]:
        """Return how this trial went so far, and how the others did."""
        curves = self.courses.read()
        mine = next(each for each in curves if each.number == self.claim.number)
        return mine, [each for each in curves if each is not mine]

    @staticmethod
    def _raise(reason: str | None) -> None:
        if reason is not None:
            raise TrialPrunedError(reason)


def _progress(fold: int, record: EpochRecord) -> Progress:
    return Progress(fold, record.epoch, record.balanced_acc_adj, record.seconds, record.images_per_second)


def begin(station: Station, claim: Claim, stop: StopSignal) -> Trial:
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
    dataset, folds = station.data(config, stop)  # asked while they are decoded, which shows life
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


def train(trial: Trial, courses: Courses, attention: Attention) -> CrossValidation:
    """
    Train the folds that are not published yet, publish them, and write what concerns the whole trial.

    Raises:
        TrialPrunedError: It is given up.
        TrainerError, StorageError: See `hpo.verdict`.
    """
    station, study = trial.station, trial.station.study
    started_at = datetime.now(UTC)
    dataset, folds = station.data(trial.config)
    section = study.file.pruning
    pruning = make_pruning(section.by_folds, section.by_epochs, n_folds=folds.n_folds, n_epochs=trial.config.epochs)
    publisher = Publisher(study, station.claims, trial.claim, trial.folder, pruning, courses, attention.pulse)
    if trial.folder.settled:  # its last attempt may have ended before it had judged what it published
        publisher.judge_fold(max(trial.folder.settled))
    result = cross_validate(
        trial.config,
        dataset,
        folds,
        trial.seeds,
        compute=trial.compute,
        folder=trial.folder,
        listener=publisher,
        stop=attention,
    )
    summary = summarise(
        trial.config,
        result.folds,
        value=result.value,
        cross_validated=True,
        seed=study.file.seed,
        compute=trial.compute,
        dataset=dataset,
        folds_hash=folds.hash,
        command=trial.command(),
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )
    write_text(trial.folder.path / "summary.json", summary.model_dump_json(indent=2) + "\n")
    return result


@dataclass
class Training:
    """The work of a search: it fits the worker's `Work`."""

    station: Station
    gallery: Gallery | None = None
    """None shows nothing on the dashboard."""
    _trial: Trial | None = None
    _pulse: Pulse = field(default_factory=Pulse)
    """Of the last trial."""
    _courses: Courses = field(init=False)
    _tidy: set[int] = field(default_factory=set)
    """Finished trials whose folders are known to be complete."""

    def __post_init__(self) -> None:
        self._courses = Courses(self.station.claims)

    def train(self, claim: Claim, attention: Attention) -> Outcome:
        """Return how the trial ended. Raises what `hpo.verdict` has a meaning for."""
        self._trial, self._pulse = None, attention.pulse
        self._trial = begin(self.station, claim, attention)
        with log_to(self._trial.folder.log):
            result = train(self._trial, self._courses, attention)
        if result.value is None:
            raise ValueError("the mean over the folds does not exist")
        return Outcome(Ending.COMPLETE, result.value, attributes={"fold_scores": [fold.score for fold in result.folds]})

    def record(self, claim: Claim, outcome: Outcome) -> Outcome:
        """Write `optuna_trial.json` into the attempt's folder, if it got as far as having one, and show the trial."""
        if self._trial is not None:
            record = trial_record.write_ending(self._trial, outcome)
            if self.gallery is not None:
                self.gallery.hang(claim, record, self._trial.folder, self._pulse.beat)
        if self.gallery is None or outcome.reason is None:
            return outcome
        return dataclasses.replace(outcome, reason=self.gallery.disguise.text(outcome.reason))

    def settle(self, claim: Claim) -> None:
        """Make the attempt's files the trial's, and stop a study that gets no better."""
        study = self.station.study
        study.folder.trial(claim.number).promote(claim.token)
        patience = study.file.budget.plateau
        if patience is not None and plateaued(self.station.claims.patience.call(lambda: study.trials), patience):
            self.station.claims.patience.call(
                steering.stop, study.storage.engine, study.registration.study_id, "plateau"
            )

    def log(self, claim: Claim) -> Path | None:  # noqa: ARG002 - the trial knows its claim
        """Return the attempt's `run.log`."""
        return None if self._trial is None else self._trial.folder.log

    def forget(self) -> None:
        """Give back what the last trial held."""
        self._trial = None
        gc.collect()
        if self.station.device.type == "cuda":
            torch.cuda.empty_cache()

    def tidy(self) -> bool:
        """Complete the folders of finished trials whose workers died before they could, and show what shows nothing."""
        for trial in self.station.claims.patience.call(lambda: self.station.study.trials):
            if trial.state.is_finished() and trial.number not in self._tidy:
                self._tidy.add(trial.number)
                try:
                    trial_record.complete_folder(self.station, trial)
                except (FolderVanishedError, OSError) as error:  # removed, or the disk fails: no reason to leave
                    logger.warning("%s", error, extra={"action": "folder_incomplete", "trial": trial.number})
        return self.gallery is not None and self.gallery.make_up()


def _fits(
    folder: AttemptFolder, publisher: Publisher, attention: Attention, training: Training
) -> tuple[RunFolder, Listener, StopSignal, Work]:
    """Let the type checker compare what storage and the search have with what the trainer and the worker ask for."""
    return folder, publisher, attention, training
