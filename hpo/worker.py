"""One process of a search: claim a trial, train it, tell how it ended, until the budget is spent."""

from __future__ import annotations

import gc
import logging
import os
import threading
import traceback
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import torch

from hpo import objective, trial_record
from hpo.errors import SearchError
from hpo.objective import EitherSignal, Station, Trial
from hpo.status import worker_name
from hpo.study import DataPlace, Study, open_data, write_folder
from hpo.verdict import ForTrial, ForWorker, verdict
from storage.claims import Claim, Claims, Ending, Idle
from storage.errors import DatabaseUnavailableError, TakenOverError
from storage.heartbeat import GRACE_S, HEARTBEAT_S, Heartbeat
from storage.patience import Patience
from storage.tree import OutputTree
from trainer.protocols import StopSignal
from trainer.resolve import device_kind, resolve_device
from trainer.run_log import log_to

logger = logging.getLogger(__name__)

_IDLE_S = 1.0
_SAME_DEFECTS = 3


class BrokenInstallationError(SearchError):
    """The same unexpected error three times in a row: not the configurations' fault."""

    def __init__(self, kind: str) -> None:
        super().__init__(
            f"{kind} three times in a row: this installation is broken; see the run.log of the last trials"
        )


class Farewell(Enum):
    """Why a worker ended in order."""

    SPENT = "the budget is spent"
    STOPPED = "asked to stop"


def set_up_station(
    study: Study,
    tree: OutputTree,
    *,
    device: str,
    threads: int | None,
    patience: Patience,
    stop: StopSignal,
    csv: Path | None,
    dicom_root: Path | None,
) -> Station:
    """
    Return where a worker works: its device, the study's data as decoded here, and its claims.

    Raises:
        InputError: There is no such device.
        NotTheStudysDataError: The data here are not the study's.
        StopRequestedError: Asked to stop while they were opened.
    """
    resolved_device = resolve_device(device)
    place = DataPlace.choose(study.file, tree, csv=csv, dicom_root=dicom_root, stop=stop)
    dataset, folds = open_data(study, place)
    write_folder(study, dataset)
    claims = Claims(
        engine=study.storage.engine,
        study_id=study.registration.study_id,
        worker=worker_name(os.getpid()),
        device=str(resolved_device),
        device_kind=device_kind(resolved_device),
        grace_s=GRACE_S,
        patience=patience,
    )
    return Station(study, claims, place, dataset, folds, resolved_device, threads)


@dataclass
class Worker:
    """Takes trials from a study until there are none left, or until `stop` is set."""

    station: Station
    stop: threading.Event
    _defects: Counter[str] = field(default_factory=Counter)
    _tidy: set[int] = field(default_factory=set)
    """Finished trials whose folders are known to be complete."""

    def run(self) -> Farewell:
        """
        Work, and return why it ended.

        Raises:
            TrainerError, StorageError, SearchError, OSError: This worker cannot go on; another may.
        """
        try:
            while not self.stop.is_set():
                if self._next() is Idle.SPENT:
                    return Farewell.SPENT
        except DatabaseUnavailableError:
            if not self.stop.is_set():  # else it was asked to stop while it waited, and what was saved is saved
                raise
        return Farewell.STOPPED

    def _next(self) -> Claim | Idle:
        """Take the next trial and train it, or wait a moment where there is none; return what there was."""
        claim = self.station.claims.claim()
        if isinstance(claim, Claim):
            self._work_on(claim)
            self._free_memory()
        else:
            self._tidy_up()
            if claim is Idle.WAIT:
                self.stop.wait(_IDLE_S)
        return claim

    def _work_on(self, claim: Claim) -> None:
        """Train a claimed trial and tell how it ended; what an error means stands in `hpo.verdict`."""
        logger.info(
            "trial %d claimed, attempt %d",
            claim.number,
            claim.attempt,
            extra={"action": "claimed", "trial": claim.number},
        )
        trial: Trial | None = None
        failure: Exception | None = None
        with Heartbeat(self.station.claims, claim, HEARTBEAT_S) as heartbeat:
            try:
                trial = objective.begin(self.station, claim)
                self._train(trial, EitherSignal(self.stop, heartbeat.lost))
            except Exception as error:  # noqa: BLE001 - the one place where every error is given its meaning
                failure = error
            # Outside of `except`: the traceback would keep the tensors of the failed step alive.
            if failure is None:
                self._defects.clear()
            elif heartbeat.lost.is_set():
                _say_lost(claim, failure)
            else:
                self._judge(claim, trial, failure)

    def _free_memory(self) -> None:
        """Give back what the last trial held; its error, whose traceback keeps tensors alive, must be gone by now."""
        gc.collect()
        if self.station.device.type == "cuda":
            torch.cuda.empty_cache()

    def _train(self, trial: Trial, stop: EitherSignal) -> None:
        with log_to(trial.folder.path / "run.log"):
            result = objective.train(trial, stop)
        if result.value is None:
            raise ValueError("the mean over the folds does not exist")
        scores = [fold.score for fold in result.folds]
        self._finish(trial, Ending.COMPLETE, value=result.value, reason=None, attributes={"fold_scores": scores})
        logger.info(
            "trial %d: %.4f",
            trial.claim.number,
            result.value,
            extra={"action": "trial_complete", "trial": trial.claim.number},
        )

    def _finish(
        self,
        trial: Trial,
        ending: Ending,
        *,
        value: float | None,
        reason: str | None,
        attributes: dict[str, object],
        spends_budget: bool = True,
    ) -> None:
        """Write the record, tell the database, and put the files in their place, in this order: each can be made up for."""
        folder = self.station.study.folder.trial(trial.claim.number)
        trial_record.write_ending(trial, ending, value=value, reason=reason)
        self.station.claims.finish(
            trial.claim,
            ending,
            value=value,
            attributes={**attributes, "folder": folder.path.name, **({"reason": reason} if reason else {})},
            spends_budget=spends_budget,
        )
        folder.promote(trial.claim.token)

    def _judge(self, claim: Claim, trial: Trial | None, error: Exception) -> None:
        """Do with the trial what the table says, and raise if the worker cannot go on."""
        meaning = verdict(error)
        try:
            if meaning.trial is ForTrial.UNTOUCHED:
                _say_lost(claim, error)
            elif meaning.trial is ForTrial.RELEASE:
                self.station.claims.release(claim)
                logger.info("trial %d given back: %s", claim.number, error, extra={"action": "released"})
            else:
                self._fail(claim, trial, error, spends_budget=meaning.trial is ForTrial.FAIL)
        except TakenOverError as taken_over:
            # What went wrong here may well be that the successor removed our folder: no reason to leave.
            _say_lost(claim, taken_over)
            return
        if meaning.worker is ForWorker.LEAVE:
            raise error
        if meaning.worker is ForWorker.THIRD_TIME:
            self._count_defect(error)

    def _fail(self, claim: Claim, trial: Trial | None, error: Exception, *, spends_budget: bool) -> None:
        reason = str(error) if spends_budget else "".join(traceback.format_exception(error))
        logger.error(
            "trial %d failed: %s", claim.number, reason, extra={"action": "trial_failed", "trial": claim.number}
        )
        if trial is None:  # it never got as far as a folder
            self.station.claims.finish(claim, Ending.FAIL, attributes={"reason": reason}, spends_budget=spends_budget)
            return
        with (trial.folder.path / "run.log").open("a", encoding="utf-8") as log:
            log.write(f"{reason}\n")
        self._finish(trial, Ending.FAIL, value=None, reason=reason, attributes={}, spends_budget=spends_budget)

    def _count_defect(self, error: Exception) -> None:
        kind = type(error).__name__
        for other in set(self._defects) - {kind}:
            del self._defects[other]
        self._defects[kind] += 1
        if self._defects[kind] >= _SAME_DEFECTS:
            raise BrokenInstallationError(kind) from error

    def _tidy_up(self) -> None:
        """Complete the folders of finished trials whose workers died before they could."""
        for trial in self.station.study.trials:
            if trial.state.is_finished() and trial.number not in self._tidy:
                trial_record.complete_folder(self.station, trial)
                self._tidy.add(trial.number)


def _say_lost(claim: Claim, error: Exception) -> None:
    logger.warning("trial %d is not ours any more: %s", claim.number, error, extra={"action": "taken_over"})
