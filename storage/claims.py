"""
Who may run what: the claims of one study.

Every write to a trial happens in one transaction that first locks the trial's claim and compares its token. A worker that
was cut off or frozen for too long finds another token there, or none, and gets a `TakenOverError`: nothing of its late work
becomes part of the trial. Every method may be called again after a database fault: a commit whose answer was lost is found
done, not done twice.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import TrialState

from storage.errors import TakenOverError
from storage.patience import Patience
from storage.record import File


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
    SPENT = "spent"
    """The budget is spent and every trial finished."""


class Ending(StrEnum):
    """How an attempt ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "fail"
    STOPPED = "stopped"
    """Asked to stop, or given up by a worker that cannot go on: the trial is free for another attempt."""
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

    def claim(self) -> Claim | Idle:
        """Claim a trial: one that is free before a new one, and a new one only within the budget."""
        token = str(uuid.uuid4())
        return self.patience.call(self._claim, token)

    def _claim(self, token: str) -> Claim | Idle:
        with self.engine.begin() as connection:
            mine = connection.execute(
                sa.text(
                    "select c.trial_id, t.number, a.number from mammography.claim c join trials t using (trial_id)"
                    " join mammography.attempt a using (token) where c.token = :token"
                ),
                {"token": token},
            ).one_or_none()
            if mine is not None:  # the commit before this retry went through after all
                return Claim(mine[0], mine[1], token, mine[2])
            outcome, trial_id, number, attempt = connection.execute(
                sa.text(
                    "select outcome, trial, trial_number, attempt_number from mammography.claim_trial("
                    ":study, :token, :worker, :device, :device_kind, make_interval(secs => :grace))"
                ),
                {
                    "study": self.study_id,
                    "token": token,
                    "worker": self.worker,
                    "device": self.device,
                    "device_kind": self.device_kind,
                    "grace": self.grace_s,
                },
            ).one()
        return Claim(trial_id, number, token, attempt) if outcome == "claimed" else Idle(outcome)

    @contextmanager
    def _mine(self, claim: Claim) -> Iterator[sa.Connection]:
        """Open a transaction in which *claim* holds and stays: its row is locked. Raises TakenOverError."""
        with self.engine.begin() as connection:
            held = connection.execute(
                sa.text("select 1 from mammography.claim where trial_id = :trial and token = :token for update"),
                {"trial": claim.trial_id, "token": claim.token},
            ).one_or_none()
            if held is None:
                raise TakenOverError(claim.number)
            yield connection

    def beat(self, claim: Claim) -> bool:
        """Show that the worker lives; return whether the claim still holds. Not retried: the next beat is soon."""
        with self.engine.begin() as connection:
            beaten = connection.execute(
                sa.text(
                    "update mammography.claim set heartbeat_at = clock_timestamp()"
                    " where trial_id = :trial and token = :token"
                ),
                {"trial": claim.trial_id, "token": claim.token},
            )
            return beaten.rowcount == 1

    def settle_resolution(self, claim: Claim, resolve: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what decides the bits, as an earlier attempt settled it; else call *resolve*, and store what it returns."""
        stored = self.patience.call(self._resolution, claim)
        return stored if stored is not None else self.patience.call(self._store_resolution, claim, resolve())

    def _resolution(self, claim: Claim) -> dict[str, Any] | None:
        with self._mine(claim) as connection:
            stored: dict[str, Any] | None = connection.execute(
                sa.text("select resolution from mammography.claim where trial_id = :trial"), {"trial": claim.trial_id}
            ).scalar_one()
            return stored

    def _store_resolution(self, claim: Claim, resolution: Mapping[str, Any]) -> dict[str, Any]:
        with self._mine(claim) as connection:
            stored: dict[str, Any] = connection.execute(
                sa.text(
                    "update mammography.claim set resolution = coalesce(resolution, cast(:resolution as jsonb)),"
                    " device_kind = coalesce(device_kind, :kind) where trial_id = :trial returning resolution"
                ),
                {"trial": claim.trial_id, "resolution": json.dumps(resolution), "kind": self.device_kind},
            ).scalar_one()
            return stored

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
        """
        canonical = json.dumps(dict(sorted(params.items())), sort_keys=True)

        def settle() -> bool:
            with self._mine(claim) as connection:
                if connection.execute(
                    sa.text("select 1 from trial_params where trial_id = :trial limit 1"), {"trial": claim.trial_id}
                ).one_or_none():
                    return True
                taken = connection.execute(
                    sa.text("select 1 from mammography.claim where study_id = :study and configuration = :canonical"),
                    {"study": self.study_id, "canonical": canonical},
                ).one_or_none()
                if taken is not None and not repetition:
                    return False
                connection.execute(
                    sa.text("update mammography.claim set configuration = :canonical where trial_id = :trial"),
                    {"trial": claim.trial_id, "canonical": None if repetition else canonical},
                )
                _insert_parameters(connection, claim.trial_id, params, distributions)
                return True

        try:
            return self.patience.call(settle)
        except sa.exc.IntegrityError:  # another worker stored the same between our look and our update
            return False

    def progress(self, claim: Claim, fold: int, epoch: int) -> None:
        """Record that *epoch* (from 0) of *fold* is finished and saved: the trial advances."""

        def record() -> None:
            with self._mine(claim) as connection:
                connection.execute(
                    sa.text(
                        "update mammography.claim set heartbeat_at = clock_timestamp(), fold = :fold, epoch = :epoch,"
                        " barren = 0 where trial_id = :trial and (fold, epoch) is distinct from (:fold, :epoch)"
                    ),
                    {"trial": claim.trial_id, "fold": fold, "epoch": epoch},
                )
                connection.execute(
                    sa.text(
                        "update mammography.attempt set epochs = jsonb_set(epochs, array[cast(:fold as text)],"
                        " coalesce(epochs -> cast(:fold as text), '[]') || to_jsonb(cast(:epoch as int)))"
                        " where token = :token"
                        " and not coalesce(epochs -> cast(:fold as text), '[]') @> to_jsonb(cast(:epoch as int))"
                    ),
                    {"token": claim.token, "fold": str(fold), "epoch": epoch},
                )

        self.patience.call(record)

    def publish_fold(self, claim: Claim, fold: int, score: float, files: tuple[File, ...]) -> None:
        """Settle the number of a fold: from here on it is part of the trial. Its folder is renamed afterwards."""

        def publish() -> None:
            with self._mine(claim) as connection:
                published = connection.execute(
                    sa.text(
                        "insert into mammography.fold (trial_id, fold, token, score, files)"
                        " values (:trial, :fold, :token, :score, cast(:files as jsonb)) on conflict do nothing"
                    ),
                    {
                        "trial": claim.trial_id,
                        "fold": fold,
                        "token": claim.token,
                        "score": score,
                        "files": json.dumps([file.model_dump() for file in files]),
                    },
                )
                if published.rowcount:
                    connection.execute(
                        sa.text(
                            "insert into trial_intermediate_values"
                            " (trial_id, step, intermediate_value, intermediate_value_type)"
                            " values (:trial, :fold, :score, 'FINITE')"
                        ),
                        {"trial": claim.trial_id, "fold": fold, "score": score},
                    )

        self.patience.call(publish)

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

        A trial without a finite value cannot be complete: raises ValueError.
        """
        if ending is Ending.COMPLETE and (value is None or not math.isfinite(value)):
            raise ValueError(f"trial {claim.number} has no finite value: {value}")

        def tell() -> None:
            if self._ended(claim):  # the commit before this retry went through after all
                return
            with self._mine(claim) as connection:
                if value is not None:
                    connection.execute(
                        sa.text(
                            "insert into trial_values (trial_id, objective, value, value_type)"
                            " values (:trial, 0, :value, 'FINITE')"
                        ),
                        {"trial": claim.trial_id, "value": value},
                    )
                for key, attribute in attributes.items():
                    connection.execute(
                        sa.text(
                            "insert into trial_user_attributes (trial_id, key, value_json)"
                            " values (:trial, :key, :value)"
                        ),
                        {"trial": claim.trial_id, "key": key, "value": json.dumps(attribute)},
                    )
                connection.execute(
                    sa.text(
                        "update trials set state = :state, datetime_complete = timezone('utc', clock_timestamp())"
                        " where trial_id = :trial"
                    ),
                    {"trial": claim.trial_id, "state": ending.state.name},
                )
                self._let_go(connection, claim, ending, spends_budget=spends_budget)

        self.patience.call(tell)

    def release(self, claim: Claim) -> None:
        """Give an unfinished trial back, so that another worker takes it up at once."""

        def give_back() -> None:
            if self._ended(claim):
                return
            with self._mine(claim) as connection:
                self._let_go(connection, claim, Ending.STOPPED, spends_budget=True)

        self.patience.call(give_back)

    def _ended(self, claim: Claim) -> bool:
        """Whether this very attempt let its claim go already, rather than lost it."""
        with self.engine.begin() as connection:
            ending = connection.execute(
                sa.text("select ending from mammography.attempt where token = :token"), {"token": claim.token}
            ).scalar_one_or_none()
        return ending is not None and ending != Ending.LOST

    @staticmethod
    def _let_go(connection: sa.Connection, claim: Claim, ending: Ending, *, spends_budget: bool) -> None:
        connection.execute(
            sa.text(
                "update mammography.attempt set ended_at = clock_timestamp(), ending = :ending where token = :token"
            ),
            {"token": claim.token, "ending": ending},
        )
        connection.execute(
            sa.text("update mammography.claim set token = null, spends_budget = :spends where trial_id = :trial"),
            {"trial": claim.trial_id, "spends": spends_budget},
        )


def _insert_parameters(
    connection: sa.Connection, trial_id: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> None:
    """Insert all parameters of a trial the way Optuna stores them."""
    if not params:
        return
    connection.execute(
        sa.text(
            "insert into trial_params (trial_id, param_name, param_value, distribution_json)"
            " values (:trial, :name, :value, :distribution)"
        ),
        [
            {
                "trial": trial_id,
                "name": name,
                "value": distributions[name].to_internal_repr(value),
                "distribution": distribution_to_json(distributions[name]),
            }
            for name, value in params.items()
        ],
    )
