"""A thread that shows that a worker lives, and notices when its claim is gone."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

import psycopg2
import sqlalchemy as sa

from storage.claims import Claim, Claims

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
"""A beat every so many seconds."""
GRACE_S = 30.0
"""A worker without a beat for so many seconds counts as lost."""


class Heartbeat:
    """
    Beats for one claim while the `with` block runs.

    A database fault does not end it: a missed beat is logged and the next one tried. What it cannot see is a worker that hangs.
    """

    def __init__(self, claims: Claims, claim: Claim, interval_s: float) -> None:
        self.lost = threading.Event()
        """Set when the claim is somebody else's: the worker must stop writing."""
        self._claims = claims
        self._claim = claim
        self._interval_s = interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{claim.number}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        # A beat that waits for an answer must not hold up the worker: the thread is a daemon and ends by itself.
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._over.wait(self._interval_s):
            try:
                held = self._claims.beat(self._claim)
            except (sa.exc.SQLAlchemyError, psycopg2.Error) as error:
                self._claims.patience.disturbance.note()
                logger.warning(
                    "heartbeat of trial %d failed: %s",
                    self._claim.number,
                    type(error).__name__,
                    extra={"action": "heartbeat_failed", "trial": self._claim.number},
                )
                continue
            if not held and not self._over.is_set():
                self.lost.set()
                return
