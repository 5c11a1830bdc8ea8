"""
One process of a search: claim a trial, work on it, tell how it ended, until nothing is left to do.

What the work is, it does not know: `hpo.objective` trains, and a test may do something trivial through the same door.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hpo.errors import SearchError
from hpo.hang import HangWatch, Pulse, Tolerance, dump_stacks
from hpo.verdict import ForTrial, ForWorker, verdict
from storage.claims import Claim, Claims, Ending, Idle
from storage.errors import DatabaseUnavailableError, StorageError, TakenOverError
from storage.heartbeat import HEARTBEAT_S, Heartbeat
from storage.text import storable

logger = logging.getLogger(__name__)

_IDLE_S = 1.0
_NEIGHBOURS_S = 20.0
"""How long the other workers of a GPU are given to need less of its memory."""
_SAME_DEFECTS = 3
_HUNG_EXIT = 1


class BrokenInstallationError(SearchError):
    """The same unexpected error three times in a row: not the configurations' fault."""

    def __init__(self, kind: str) -> None:
        super().__init__(
            f"{kind} three times in a row: this installation is broken; see the run.log of the last trials"
        )


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    ending: Ending
    value: float | None = None
    """Of a complete trial."""
    reason: str | None = None
    """Why it was pruned or failed."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """For Optuna, beside the reason."""
    spends_budget: bool = True


@dataclass(frozen=True)
class Attention:
    """What the work on a trial asks between its steps: whether to stop. Asking shows that it advances."""

    stop: threading.Event
    lost: threading.Event
    """Set when the claim is somebody else's by now."""
    pulse: Pulse

    def is_set(self) -> bool:
        """Return whether to stop as soon as possible."""
        self.pulse.beat()
        return self.stop.is_set() or self.lost.is_set()


class Work(Protocol):
    """What a worker does with the trials that it claims."""

    def train(self, claim: Claim, attention: Attention) -> Outcome:
        """Return how the trial ended; raise what `hpo.verdict` has a meaning for."""
        ...

    def record(self, claim: Claim, outcome: Outcome) -> Outcome:
        """Write down and show how the trial is about to end; return it as the database may be told, which is next."""
        ...

    def settle(self, claim: Claim) -> None:
        """Put the files of a trial in their place, of which the database was told that it ended."""
        ...

    def log(self, claim: Claim) -> Path | None:
        """Return the log of the trial, if it got as far as having one."""
        ...

    def forget(self) -> None:
        """Give back what the last trial held; its error, whose traceback keeps tensors alive, is gone."""
        ...

    def tidy(self) -> bool:
        """Make up for what dead workers left undone, while there is nothing else to do; return whether there is more of it."""
        ...


@dataclass
class Worker:
    """Takes trials from a study until there are none left, or until `stop` is set."""

    claims: Claims
    work: Work
    stop: threading.Event
    alone: bool = True
    """Whether no other worker shares the device."""
    tolerance: Tolerance = field(default_factory=Tolerance)
    _claim: Claim | None = None
    _said_waiting: bool = False
    _defects: Counter[str] = field(default_factory=Counter)

    def run(self) -> Idle | None:
        """
        Work, and return why there is nothing left to do; None if asked to stop.

        Raises:
            TrainerError, StorageError, SearchError, OSError: This worker cannot go on; another may.
        """
        try:
            while not self.stop.is_set():
                found = self.claims.claim()
                if isinstance(found, Claim):
                    self._take(found)
                    self.work.forget()
                elif found is Idle.DELETED:
                    return found
                elif not self.work.tidy():
                    if found not in {Idle.WAIT, Idle.OTHER_DEVICE}:
                        return found
                    self._say_waiting(found)
                    self.stop.wait(_IDLE_S)
        except DatabaseUnavailableError:
            if not self.stop.is_set():  # else it was asked to stop while it waited, and what was saved is saved
                raise
        return None

    def _say_waiting(self, why: Idle) -> None:
        if why is Idle.OTHER_DEVICE and not self._said_waiting:
            logger.warning(
                "nobody works on the last trials, which were begun on another kind of device: waiting for such a worker",
                extra={"action": "waiting_for_device"},
            )
        self._said_waiting = why is Idle.OTHER_DEVICE

    def give_back(self) -> None:
        """Queue the trial under way again at once. For another thread, when the main one does not come to it in time."""
        claim = self._claim
        if claim is not None:
            try:
                self.claims.release(claim)
            except StorageError as error:
                logger.warning("trial %d not given back: %s", claim.number, error, extra={"action": "not_released"})

    def _take(self, claim: Claim) -> None:
        """Work on a claimed trial and tell how it ended; what an error means stands in `hpo.verdict`."""
        said = {"action": "claimed", "trial": claim.number}
        logger.info("trial %d claimed, attempt %d", claim.number, claim.attempt, extra=said)
        failure: Exception | None = None
        pulse = Pulse()
        disturbance = self.claims.patience.disturbance
        self._claim = claim
        with (
            Heartbeat(self.claims, claim, HEARTBEAT_S) as heartbeat,
            HangWatch(pulse, self.tolerance, disturbance, lambda still_s: self._give_up(claim, still_s)),
        ):
            try:
                self._finish(claim, self.work.train(claim, Attention(self.stop, heartbeat.lost, pulse)))
            except Exception as error:  # noqa: BLE001 - the one place where every error is given its meaning
                failure = error
            # Outside of `except`: the traceback would keep the tensors of the failed step alive.
            if failure is None:
                self._defects.clear()
            elif heartbeat.lost.is_set():
                _say_lost(claim, failure)
            else:
                self._judge(claim, failure)
        self._claim = None

    def _finish(self, claim: Claim, outcome: Outcome) -> None:
        """Write the record, tell the database, and put the files in their place, in this order: each can be made up for."""
        outcome = self.work.record(claim, outcome)
        reason = {} if outcome.reason is None else {"reason": outcome.reason}
        self.claims.finish(
            claim,
            outcome.ending,
            value=outcome.value,
            attributes={**outcome.attributes, **reason},
            spends_budget=outcome.spends_budget,
        )
        logger.info(
            "trial %d: %s",
            claim.number,
            outcome.ending if outcome.value is None else f"{outcome.value:.4f}",
            extra={"action": f"trial_{outcome.ending}", "trial": claim.number},
        )
        self.work.settle(claim)

    def _judge(self, claim: Claim, error: Exception) -> None:
        """Do with the trial what the table says, and raise if the worker cannot go on."""
        meaning = verdict(error, alone=self.alone)
        try:
            self._conclude(claim, meaning.trial, error)
        except TakenOverError as taken_over:
            # What went wrong here may well be that the successor removed our folder: no reason to leave.
            _say_lost(claim, taken_over)
            return
        except OSError as worse:  # the disk that failed the trial takes no record of it either
            self._leave(claim, worse)
            return
        if meaning.worker is ForWorker.LEAVE:
            raise error
        if meaning.worker is ForWorker.THIRD_TIME:
            self._count_defect(error)
        else:
            self._defects.clear()

    def _leave(self, claim: Claim, error: OSError) -> None:
        """Give the trial back and raise *error*, unless the trial is somebody else's, which may well be its reason."""
        try:
            self.claims.release(claim, Ending.LEFT)
        except TakenOverError as taken_over:
            _say_lost(claim, taken_over)
            return
        raise error

    def _conclude(self, claim: Claim, what: ForTrial, error: Exception) -> None:
        """Give the trial the end that *error* has earned it. Raises TakenOverError."""
        if what is ForTrial.UNTOUCHED:
            _say_lost(claim, error)
        elif what is ForTrial.RELEASE:
            self.claims.release(claim, Ending.STOPPED if self.stop.is_set() else Ending.LEFT)
            logger.info("trial %d given back: %s", claim.number, error, extra={"action": "released"})
        elif what is ForTrial.UNLUCKY:
            self.claims.release(claim, Ending.LEFT, died=True, reason=storable(str(error)))
            logger.info("trial %d given back: %s", claim.number, error, extra={"action": "released"})
            self.stop.wait(_NEIGHBOURS_S)
        elif what is ForTrial.PRUNED:
            self._finish(claim, Outcome(Ending.PRUNED, reason=storable(str(error))))
        else:
            self._fail(claim, what, error)

    def _fail(self, claim: Claim, what: ForTrial, error: Exception) -> None:
        """Fail the trial, with the reason in its log; where it is nobody's fault that we know of, with the traceback."""
        said_by_python = "".join(traceback.format_exception(error)) if what is ForTrial.FAIL_FREE else str(error)
        reason = storable(said_by_python)  # it quotes what it likes, and goes into files, JSON and the database
        said = {"action": "trial_failed", "trial": claim.number}
        logger.error("trial %d failed: %s", claim.number, reason, extra=said)
        log = self.work.log(claim)
        if log is not None:
            with log.open("a", encoding="utf-8") as stream:
                stream.write(f"{reason}\n")
        self._finish(claim, Outcome(Ending.FAIL, reason=reason, spends_budget=what is ForTrial.FAIL))

    def _count_defect(self, error: Exception) -> None:
        kind = type(error).__name__
        for other in set(self._defects) - {kind}:
            del self._defects[other]
        self._defects[kind] += 1
        if self._defects[kind] >= _SAME_DEFECTS:
            raise BrokenInstallationError(kind) from error

    def _give_up(self, claim: Claim, still_s: float) -> None:
        """Give a trial up that hangs: nothing can be asked of its thread any more, so the process goes with it."""
        said = {"action": "hung", "trial": claim.number}
        logger.error("trial %d does not advance since %.0f s: given up", claim.number, still_s, extra=said)
        log = self.work.log(claim)
        try:
            if log is not None:
                dump_stacks(log, still_s)
            self.claims.release(claim, Ending.HUNG, died=True)
        except (StorageError, OSError) as error:
            logger.warning("trial %d not given back: %s", claim.number, error, extra={"action": "not_released"})
        finally:
            os._exit(_HUNG_EXIT)


def _say_lost(claim: Claim, error: Exception) -> None:
    logger.warning("trial %d is not ours any more: %s", claim.number, error, extra={"action": "taken_over"})
