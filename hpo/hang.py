"""A hang is not life: a trial that does not advance for much longer than its own epochs take is given up."""

from __future__ import annotations

import faulthandler
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from storage.patience import Disturbance

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
_FROZEN_S = 10.0


@dataclass(frozen=True)
class Tolerance:
    """How long a trial may stand still, in seconds."""

    first_s: float = 1800.0
    """Before its first epoch, of which it is not known how long it takes."""
    least_s: float = 120.0
    """At least, however short its epochs are: files are hashed and written between them."""
    epochs: float = 5.0
    """Times its longest epoch so far."""

    def limit_s(self, longest_epoch_s: float | None) -> float:
        """Return how long a trial may stand still whose longest epoch so far took *longest_epoch_s*."""
        return self.first_s if longest_epoch_s is None else max(self.least_s, self.epochs * longest_epoch_s)


@dataclass
class Pulse:
    """What a trial shows of itself: that it asks for the next step, and how long its epochs take."""

    longest_epoch_s: float | None = None
    beaten_at: float = field(default_factory=time.monotonic)

    def beat(self) -> None:
        """Take note of a step."""
        self.beaten_at = time.monotonic()

    def epoch(self, seconds: float) -> None:
        """Take note of an epoch."""
        self.longest_epoch_s = max(seconds, self.longest_epoch_s or 0.0)
        self.beat()


class HangWatch:
    """
    Watches one trial while the `with` block runs, and calls *give_up* once when it does not advance any more.

    The time in which the database was away does not count: then the trial waits for it, and that is no hang.
    """

    def __init__(
        self, pulse: Pulse, tolerance: Tolerance, disturbance: Disturbance, give_up: Callable[[float], None]
    ) -> None:
        self._pulse = pulse
        self._tolerance = tolerance
        self._disturbance = disturbance
        self._give_up = give_up
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hang-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=2 * _LOOK_S)

    def _run(self) -> None:
        looked_at = time.monotonic()
        while not self._over.wait(_LOOK_S):
            now = time.monotonic()
            if now - looked_at > _FROZEN_S:  # this whole process stood still, and not its trial alone
                self._pulse.beat()
            looked_at = now
            still_s = min(now - self._pulse.beaten_at, self._disturbance.seconds_ago())
            if still_s > self._tolerance.limit_s(self._pulse.longest_epoch_s):
                self._give_up(still_s)
                return


def dump_stacks(log: Path, still_s: float) -> None:
    """Append to *log* where every thread of this process stands."""
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"no progress for {still_s:.0f} s: given up. Where every thread stands:\n")
        stream.flush()
        faulthandler.dump_traceback(stream, all_threads=True)
