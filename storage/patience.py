"""How long a worker waits for a database that is away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import psycopg2
import sqlalchemy as sa
import tenacity
from optuna.exceptions import StorageInternalError

from storage.errors import DatabaseUnavailableError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

FAULTS = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.InternalError,
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
    StorageInternalError,
)
"""
What a restart, a failover or a cut network look like from here. Optuna wraps some of it; and while a connection goes back into
the pool, the driver's own errors come through unwrapped.
"""
_SLOW_S = 5.0
"""A call that took so long waited for a database that stood still."""


class Disturbance:
    """When the way to the database was last seen broken by this process."""

    def __init__(self) -> None:
        self._at: float | None = None

    def note(self) -> None:
        """Take note that it is broken now."""
        self._at = time.monotonic()

    def seconds_ago(self) -> float:
        """Return how long ago that was; infinity if never."""
        return float("inf") if self._at is None else time.monotonic() - self._at


@dataclass(frozen=True)
class Patience:
    """Calls that are made again, with growing pauses, while the database is away."""

    seconds: float = 600.0
    """How long; afterwards the fault is a `DatabaseUnavailableError`."""
    stop: threading.Event = field(default_factory=threading.Event)
    """When it is set, nobody waits any longer."""
    disturbance: Disturbance = field(default_factory=Disturbance)
    """The heartbeat's thread takes note here too."""

    def undisturbed_for(self, seconds: float) -> bool:
        """Return whether nothing was wrong with the way to the database for so long."""
        return self.disturbance.seconds_ago() > seconds

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Return what *function* returns. It must bear being called again after a commit whose answer was lost.

        Raises:
            DatabaseUnavailableError: The database was away for longer than the patience, or until the stop.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_fault),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=10.0),
            stop=tenacity.stop_any(tenacity.stop_after_delay(self.seconds), tenacity.stop_when_event_set(self.stop)),
            sleep=tenacity.sleep_using_event(self.stop),
            before_sleep=self._say,
            reraise=True,
        )
        began = time.monotonic()
        try:
            return retrying(function, *args, **kwargs)
        except (*FAULTS, sa.exc.DBAPIError) as error:
            if not is_fault(error):
                raise
            raise DatabaseUnavailableError(first_line(error)) from error
        finally:
            if time.monotonic() - began > _SLOW_S:
                self.disturbance.note()

    def _say(self, state: tenacity.RetryCallState) -> None:
        self.disturbance.note()
        error = state.outcome.exception() if state.outcome else None
        logger.warning(
            "database away, attempt %d: %s", state.attempt_number, first_line(error), extra={"action": "database_away"}
        )


def is_fault(error: BaseException) -> bool:
    """Return whether *error* is the way to the database, and not what was asked of it."""
    return isinstance(error, FAULTS) or (isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated)


def first_line(error: BaseException | None) -> str:
    """Return what the driver says, in its first line and without the statement."""
    cause = getattr(error, "__cause__", None)  # Optuna says something of its own in front of it
    text = str(getattr(error, "orig", None) or getattr(cause, "orig", None) or error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
