"""
A study as Prometheus reads it: every scrape is one look at the database.

Names follow Prometheus: base units, seconds in the place of hours, and the unit in the name. A number that does not exist is
absent, never 0.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from wsgiref.simple_server import WSGIServer

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, StateSetMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hpo.status import STUDY_STATES, Status, status
from hpo.study import Study
from storage.errors import StorageError
from storage.heartbeat import GRACE_S
from storage.ledger import Spending
from storage.summaries import VitalSigns, vital_signs

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""How long a scrape waits for the database; Prometheus itself gives up after ten seconds."""
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Seen:
    """A study at one moment."""

    status: Status
    signs: VitalSigns


class StudyCollector(Collector):
    """Gives the metrics of one study; `mammography_up` alone, and 0, while the database does not answer."""

    def __init__(self, study: Study, patience_s: float = PATIENCE_S) -> None:
        self._study = study
        self._patience_s = patience_s
        self._starting = threading.Lock()
        self._look: _Look | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics there are now."""
        seen = self._see()
        yield _gauge("up", "Whether the database answers.", self._study.name, float(seen is not None))
        if seen is not None:
            yield from _metrics(seen)

    def _see(self) -> Seen | None:
        """Return how the study is; None if the database does not say so in time. Scrapes at the same moment share one look."""
        with self._starting:
            if self._look is None or not self._look.is_alive():
                self._look = _Look(self._study)
                self._look.start()
            look = self._look
        look.join(self._patience_s)
        return look.seen


class _Look(threading.Thread):
    """One look at the database, in a thread of its own: a server that does not answer at all must not hold up a scrape."""

    def __init__(self, study: Study) -> None:
        super().__init__(name="look", daemon=True)
        self.seen: Seen | None = None
        self._study = study

    def run(self) -> None:
        engine, study_id = self._study.storage.engine, self._study.registration.study_id
        try:
            self.seen = Seen(status(self._study), vital_signs(engine, study_id, GRACE_S))
        except (sa.exc.SQLAlchemyError, StorageInternalError, StorageError) as error:
            said = {"action": "scrape_failed", "study": self._study.name}
            logger.warning("no metrics: %s", (str(error).splitlines() or [type(error).__name__])[0], extra=said)


def _metrics(seen: Seen) -> Iterator[Metric]:
    now, signs = seen.status, seen.signs
    study, budget = now.study, now.budget
    speeds = [worker.images_per_second for worker in now.workers if worker.images_per_second is not None]

    trials = GaugeMetricFamily("mammography_trials", "Trials by state.", labels=["study", "state"])
    for state, count in now.trials.items():
        trials.add_metric([study, state], count)
    yield trials
    states = StateSetMetricFamily(
        "mammography_study_state", "The study's state is 1, the others are 0.", labels=["study"]
    )
    states.add_metric([study], {state: state == now.state for state in STUDY_STATES})
    yield states

    yield from _limit("trials", "Trials", study, budget.asked, budget.spent, budget.left)
    yield from _limit("seconds", "Seconds with a worker at work", study, *_seconds(budget.hours))
    yield from _limit("gpu_seconds", "Seconds that workers hold GPUs", study, *_seconds(budget.gpu_hours))
    yield from _exists(
        "budget_deadline_timestamp_seconds", "When nothing begins any more.", study, _posix(budget.deadline)
    )

    yield _gauge("workers", "Workers that show life.", study, len(now.workers))
    yield _gauge("stale_workers", "Claims of workers that have not shown life lately.", study, signs.stale_workers)
    yield from _exists("images_per_second", "Of all workers together.", study, sum(speeds) if speeds else None)
    by_worker = GaugeMetricFamily(
        "mammography_worker_images_per_second", "Of each worker.", labels=["study", "worker", "device"]
    )
    for worker in now.workers:
        if worker.images_per_second is not None:
            by_worker.add_metric([study, worker.name, worker.device], worker.images_per_second)
    yield by_worker

    best = None if now.best is None else now.best.value
    yield from _exists("best_value", "Balanced accuracy adjusted for chance of the best trial.", study, best)
    since = signs.since_last_finished_s
    yield from _exists("last_finished_trial_age_seconds", "Seconds since a trial finished.", study, since)


def _gauge(name: str, what: str, study: str, value: float) -> Metric:
    family = GaugeMetricFamily(f"mammography_{name}", what, labels=["study"])
    family.add_metric([study], value)
    return family


def _exists(name: str, what: str, study: str, value: float | None) -> Iterator[Metric]:
    """Yield the metric if there is a value."""
    if value is not None:
        yield _gauge(name, what, study, value)


def _limit(
    unit: str, what: str, study: str, asked: float | None, spent: float | None, left: float | None
) -> Iterator[Metric]:
    """Yield what was asked, is spent and is left of one limit, as far as it exists."""
    yield from _exists(f"budget_asked_{unit}", f"{what}: asked for.", study, asked)
    yield from _exists(f"budget_spent_{unit}", f"{what}: spent.", study, spent)
    yield from _exists(f"budget_left_{unit}", f"{what}: left.", study, left)


def _seconds(hours: Spending | None) -> tuple[float | None, float | None, float | None]:
    """Return what was asked, is spent and is left of a limit of hours, in seconds."""
    return (None, None, None) if hours is None else (hours.asked * _HOUR_S, hours.spent * _HOUR_S, hours.left * _HOUR_S)


def _posix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def serve(study: Study, *, host: str = "127.0.0.1", port: int = 9108) -> WSGIServer:
    """
    Return a server that answers in a thread of its own, on *host* and *port* (0: any free one); `shutdown` ends it.

    Raises:
        OSError: The address cannot be listened on.
    """
    registry = CollectorRegistry()  # none of the process's own metrics
    registry.register(StudyCollector(study))
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return server


def url(server: WSGIServer) -> str:
    """Return where the metrics are."""
    host, port = server.server_address[:2]
    shown = f"[{host!s}]" if ":" in str(host) else str(host)
    return f"http://{shown}:{port}/metrics"
