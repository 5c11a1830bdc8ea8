"""
Who may run what: the claims of one study.

Every write to a trial is one statement, which locks the trial's claim and compares its token. A worker that was cut off or
frozen for too long finds another token there, or none, and gets a `TakenOverError`: nothing of its late work becomes part of
the trial. Every method may be called again after a database fault: a commit whose answer was lost is found done, not done
twice. The SQL is in `storage/sql/`.
"""

from __future__ import annotations

import json
import logging
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import TrialState

from storage.errors import TakenOverError
from storage.exhibits import attributes_text
from storage.patience import Patience
from storage.record import File
from storage.text import storable

logger = logging.getLogger(__name__)

_PROGRESS = ":fold, :epoch, :score, :seconds, :images_per_second"


@dataclass(frozen=True)
class Claim:
    """The right to write to one trial, until somebody else's token stands in its place."""

    trial_id: int
    number: int
    token: str
    attempt: int
    """From 0; more than 0 when earlier attempts ended without finishing the trial."""


class Idle(StrEnum):
    """Why there is no trial to claim."""

    WAIT = "wait"
    """Others still work on the last trials; one of them may yet become free."""
    OTHER_DEVICE = "device"
    """The last trials were begun on another kind of device, and nobody works on them."""
    SPENT = "spent"
    """The budget is spent and every trial finished."""
    EXHAUSTED = "exhausted"
    """Every configuration of a finite space was tried."""
    STOPPED = "stopped"
    """The study was stopped, and what had begun is finished."""
    DELETED = "deleted"
    """There is no such study any more."""


class Ending(StrEnum):
    """How an attempt ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "fail"
    STOPPED = "stopped"
    """Asked to stop: the trial is free for another attempt."""
    LEFT = "left"
    """Its worker could not go on, for a reason that need not be the trial's."""
    HUNG = "hung"
    """Given up by its own worker, since it did not advance any more."""
    LOST = "lost"
    """No heartbeat for a grace period."""

    @property
    def state(self) -> TrialState:
        """Optuna's state for a trial that ended so; only the endings that finish a trial have one."""
        return {
            Ending.COMPLETE: TrialState.COMPLETE,
            Ending.PRUNED: TrialState.PRUNED,
            Ending.FAIL: TrialState.FAIL,
        }[self]


@dataclass(frozen=True)
class Progress:
    """A finished and saved epoch."""

    fold: int
    epoch: int
    """From 0."""
    score: float | None
    """Balanced accuracy adjusted on the validation images; None where it does not exist."""
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Claims:
    """The claims of one study, as one worker sees them."""

    engine: sa.Engine
    study_id: int
    worker: str
    """A name that tells people which process this is."""
    device: str
    device_kind: str
    """cpu, or the name of the GPU: a trial begun on one kind is not continued on another."""
    grace_s: float
    """Seconds without a heartbeat after which a worker counts as lost."""
    patience: Patience = field(default_factory=Patience)
    gpus: float = 0.0
    """The share of a GPU that the worker holds, for the budget of GPU-hours; 0 on the processor."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions and commit that the worker runs with, for the record of its attempts."""

    def claim(self) -> Claim | Idle:
        """Claim a trial: one that is free before a new one, and a new one only within the budget."""
        while (claimed := self.patience.call(self._claim, str(uuid.uuid4()))) is None:
            logger.warning("a claim was lost before its answer arrived", extra={"action": "claim_lost"})
        return claimed

    def _claim(self, token: str) -> Claim | Idle | None:
        """Claim a trial under *token*; return None if one was claimed under it before, and lost."""
        outcome, trial_id, number, attempt = self._row(
            "select outcome, trial, trial_number, attempt_number from mammography.claim_trial(:study, :token,"
            " :worker, :device, :kind, :gpus, cast(:environment as jsonb), make_interval(secs => :grace), :repair)",
            study=self.study_id,
            token=token,
            worker=self.worker,
            device=self.device,
            kind=self.device_kind,
            gpus=self.gpus,
            environment=json.dumps(dict(self.environment)),
            grace=self.grace_s,
            # Who was cut off a moment ago does not judge the others: they may have been cut off as well.
            repair=self.patience.undisturbed_for(self.grace_s),
        )
        if outcome == "lost":
            return None
        return Claim(trial_id, number, token, attempt) if outcome == "claimed" else Idle(outcome)

    def _row(self, statement: str, **values: Any) -> tuple[Any, ...]:
        """Return the one row of a statement that is a transaction of its own: no lock outlives it, whatever becomes of us."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            return tuple(connection.execute(sa.text(statement), values).one())

    def _held(self, claim: Claim, function: str, arguments: str, **values: Any) -> None:
        """Call a *function* that writes to the trial, again while the database is away. Raises TakenOverError."""
        statement = f"select mammography.{function}(:trial, :token, {arguments})"
        held = self.patience.call(self._row, statement, trial=claim.trial_id, token=claim.token, **values)[0]
        if not held:
            raise TakenOverError(claim.number)

    def beat(self, claim: Claim) -> bool:
        """Show that the worker lives; return whether the claim still holds. Not retried: the next beat is soon."""
        return bool(self._row("select mammography.beat(:trial, :token)", trial=claim.trial_id, token=claim.token)[0])

    def settle_resolution(self, claim: Claim, resolve: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """
        Return what decides the bits, as an earlier attempt settled it; else call *resolve*, and store what it returns.

        Raises:
            TakenOverError: The claim is somebody else's by now.
        """
        stored = self._settle_resolution(claim, None)
        return stored if stored is not None else self._settle_resolution(claim, resolve()) or {}

    def _settle_resolution(self, claim: Claim, resolution: Mapping[str, Any] | None) -> dict[str, Any] | None:
        held, stored = self.patience.call(
            self._row,
            "select held, stored from mammography.settle_resolution(:trial, :token, cast(:resolution as jsonb), :kind)",
            trial=claim.trial_id,
            token=claim.token,
            resolution=None if resolution is None else json.dumps(dict(resolution)),
            kind=self.device_kind,
        )
        if not held:
            raise TakenOverError(claim.number)
        settled: dict[str, Any] | None = stored
        return settled

    def settle_parameters(
        self,
        claim: Claim,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        *,
        repetition: bool = False,
    ) -> bool:
        """
        Store all parameters at once; return False, and store nothing, if another trial of the study has the same.

        With *repetition* the same configuration is wanted again and stored whatever others have.

        Raises:
            TakenOverError: The claim is somebody else's by now.
        """
        outcome = self.patience.call(
            self._row,
            "select mammography.settle_parameters(:trial, :token, :configuration, cast(:params as jsonb))",
            trial=claim.trial_id,
            token=claim.token,
            configuration=None if repetition else canonical(params),
            params=stored_parameters(params, distributions),
        )[0]
        if outcome == "gone":
            raise TakenOverError(claim.number)
        return bool(outcome != "taken")

    def advance(self, claim: Claim, progress: Progress) -> None:
        """Record that an epoch is finished and saved: the trial advances. Raises TakenOverError."""
        self._held(claim, "advance", _PROGRESS, **vars(progress))

    def resume(self, claim: Claim, progress: Progress) -> None:
        """Record the last saved epoch of a fold that is continued, if its attempt died before it could. Raises TakenOverError."""
        self._held(claim, "resume", _PROGRESS, **vars(progress))

    def publish_fold(self, claim: Claim, fold: int, score: float, files: tuple[File, ...]) -> None:
        """
        Settle the number of a fold: from here on it is part of the trial. Its folder is renamed afterwards.

        Raises:
            TakenOverError: The claim is somebody else's by now.
        """
        listed = json.dumps([file.model_dump() for file in files])
        self._held(claim, "publish_fold", ":fold, :score, cast(:files as jsonb)", fold=fold, score=score, files=listed)

    def attach(self, claim: Claim, attributes: Mapping[str, str]) -> None:
        """
        Attach what the trial shows once it is finished, see `storage.exhibits`, in place of what earlier attempts attached.

        Raises:
            TakenOverError: The claim is somebody else's by now.
        """
        self._held(claim, "attach", "cast(:attributes as jsonb)", attributes=attributes_text(attributes))

    def finish(
        self,
        claim: Claim,
        ending: Ending,
        *,
        value: float | None = None,
        attributes: Mapping[str, Any],
        spends_budget: bool = True,
    ) -> None:
        """
        Tell Optuna how the trial ended, and let the claim go.

        Raises:
            TakenOverError: The claim is somebody else's by now.
            ValueError: A trial without a finite value cannot be complete.
        """
        if ending is Ending.COMPLETE and (value is None or not math.isfinite(value)):
            raise ValueError(f"trial {claim.number} has no finite value: {value}")
        self._held(
            claim,
            "finish",
            ":ending, :state, :value, cast(:attributes as jsonb), :spends",
            ending=ending,
            state=ending.state.name,
            value=value,
            attributes=json.dumps(
                {key: storable(value) if isinstance(value, str) else value for key, value in attributes.items()}
            ),
            spends=spends_budget,
        )

    def release(
        self, claim: Claim, ending: Ending = Ending.STOPPED, *, died: bool = False, reason: str | None = None
    ) -> None:
        """
        Give an unfinished trial back, so that another worker takes it up at once.

        With *died* the attempt counts like one whose worker died: after three in a row without an epoch the trial fails, with
        this *reason*.

        Raises:
            TakenOverError: The claim is somebody else's by now.
        """
        reason = None if reason is None else storable(reason)
        self._held(claim, "release", ":ending, :died, :reason", ending=ending, died=died, reason=reason)


def canonical(params: Mapping[str, Any]) -> str:
    """Return *params* as a text that is the same for the same configuration."""
    return json.dumps(dict(params), sort_keys=True)


def stored_parameters(params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> str:
    """Return *params* as JSON, the way Optuna stores them: name, internal value, and distribution of each."""
    return json.dumps(
        [
            {
                "name": name,
                "value": distributions[name].to_internal_repr(value),
                "distribution": distribution_to_json(distributions[name]),
            }
            for name, value in params.items()
        ]
    )
