"""What Prometheus reads, over HTTP, of a study on a real PostgreSQL."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from hpo.metrics import StudyCollector, serve, url
from hpo.study import Study, load
from hpo.study_file import StudyFile
from storage import ledger
from storage.claims import Claim, Claims, Ending, Progress
from storage.study_storage import StudyStorage, open_storage
from storage.tree import OutputTree

MakeStudy = Callable[..., Study]


@dataclass(frozen=True)
class Scrape:
    """What one scrape brought."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def __call__(self, name: str, **labels: str) -> float | None:
        """Return the value of a sample of study s; None if it is absent."""
        return self.samples.get((f"mammography_{name}", frozenset({"study": "s", **labels}.items())))

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {name for name, _ in self.samples}


def unblock_signals() -> None:
    """Undo what an earlier test may have left, which had a command in this process wait for signals in a thread."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))


def fetched(address: str) -> str:
    """Return the text at an address."""
    with urllib.request.urlopen(address, timeout=20) as answer:  # noqa: S310 - our own server's
        return str(answer.read().decode())


def scrape(study: Study) -> Scrape:
    """Return what a server of the study's metrics answers."""
    server = serve(study, port=0)
    try:
        text = fetched(url(server))
    finally:
        server.shutdown()
        server.server_close()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation and family.type == "gauge" for family in families)
    return Scrape({(each.name, frozenset(each.labels.items())): each.value for one in families for each in one.samples})


@pytest.fixture
def storage(database_url: sa.URL) -> Iterator[StudyStorage]:
    """A study storage on a fresh database."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = open_storage(database_url, application_name="metrics")
    yield opened
    opened.engine.dispose()


@pytest.fixture
def make_study(storage: StudyStorage, tmp_path: Path) -> MakeStudy:
    """A function from limits to a new study without data."""

    def make(**budget: object) -> Study:
        search = {"lr": {"type": "float", "low": 0.001, "high": 0.1}}
        file = StudyFile.model_validate({"study": "s", "search": search, "budget": budget})
        made = optuna.create_study(study_name="s", storage=storage.optuna, direction="maximize")
        with storage.engine.begin() as connection:
            ledger.register(
                connection, study_id=made._study_id, resolved=file.model_dump(mode="json"), data_hash="d",
                folds_hash="f", folds_csv="", limits=file.budget.limits(None),
            )  # fmt: skip
        return load("s", OutputTree(tmp_path / "outputs"), storage)

    return make


def claimed(study: Study, worker: str) -> tuple[Claims, Claim]:
    """Return a new claim, and what it was made with."""
    claims = Claims(study.storage.engine, study.registration.study_id, worker, "cuda:0", "A GPU", grace_s=30, gpus=1.0)
    claim = claims.claim()
    assert isinstance(claim, Claim)
    return claims, claim


def test_study_at_work(make_study: MakeStudy) -> None:
    """Trials, limits, workers, speeds, the best value: what `study status` says, in base units."""
    deadline = datetime.now(UTC) + timedelta(days=1)
    study = make_study(trials=9, hours=2, gpu_hours=3, deadline=deadline)
    claims, best = claimed(study, "host:1")
    for fold in range(study.file.cv.folds):
        claims.publish_fold(best, fold, 0.625, ())
    claims.finish(best, Ending.COMPLETE, value=0.625, attributes={})
    claims, pruned = claimed(study, "host:1")
    claims.finish(pruned, Ending.PRUNED, attributes={})
    for worker, images_per_second in (("host:1", 30.0), ("host:2", 12.5), ("host:3", None)):
        claims, claim = claimed(study, worker)
        if images_per_second is not None:
            claims.advance(claim, Progress(0, 0, 0.5, 1.0, images_per_second))
    _, lost = claimed(study, "host:4")
    with study.storage.engine.begin() as connection:
        stale = "update mammography.claim set heartbeat_at = now() - interval '1 hour' where trial_id = :trial"
        connection.execute(sa.text(stale), {"trial": lost.trial_id})
        connection.exec_driver_sql(
            "update trials set datetime_complete = timezone('utc', now()) - interval '90 seconds' where state = 'PRUNED'"
        )
        connection.exec_driver_sql(
            "update trials set datetime_complete = timezone('utc', now()) - interval '2 hours' where state = 'COMPLETE'"
        )
    now = scrape(study)
    assert now("up") == 1
    counts = {"running": 4, "waiting": 0, "complete": 1, "pruned": 1, "fail": 0}
    assert {state: now("trials", state=state) for state in counts} == counts
    states = ("waiting", "running", "finished", "exhausted", "stopped")
    on = [state for state in states if now("study_state", mammography_study_state=state)]
    assert on == ["running"]
    assert (now("budget_asked_trials"), now("budget_spent_trials"), now("budget_left_trials")) == (9, 2, 7)
    assert (now("budget_asked_seconds"), now("budget_asked_gpu_seconds")) == (7200, 10800)
    assert now("budget_spent_seconds") + now("budget_left_seconds") == pytest.approx(7200)  # type: ignore[operator]
    assert now("budget_spent_gpu_seconds") > 0  # type: ignore[operator]
    assert now("budget_deadline_timestamp_seconds") == pytest.approx(deadline.timestamp())
    assert (now("workers"), now("stale_workers")) == (3, 1)
    assert now("images_per_second") == 42.5
    assert now("worker_images_per_second", worker="host:2", device="cuda:0") == 12.5
    assert now("worker_images_per_second", worker="host:3", device="cuda:0") is None
    assert now("best_value") == 0.625
    assert now("last_finished_trial_age_seconds") == pytest.approx(90, abs=20)


def test_number_that_does_not_exist_is_absent(make_study: MakeStudy) -> None:
    """A new study has no best value, no speed and no last trial; and no limits but those that were asked for."""
    now = scrape(make_study(trials=2))
    assert now("up") == 1
    assert now.names == {
        f"mammography_{name}"
        for name in (
            "up", "trials", "study_state", "workers", "stale_workers",
            "budget_asked_trials", "budget_spent_trials", "budget_left_trials",
        )
    }  # fmt: skip
    assert now("study_state", mammography_study_state="waiting") == 1


def test_database_that_does_not_answer(make_study: MakeStudy) -> None:
    """While it holds its answer back a scrape says so in time; when it answers again, so do the metrics."""
    study = make_study(trials=2)
    registry = CollectorRegistry()
    registry.register(StudyCollector(study, patience_s=0.3))

    def up() -> float | None:
        return registry.get_sample_value("mammography_up", {"study": "s"})

    assert up() == 1
    with study.storage.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("lock table trials in access exclusive mode")
        began = time.monotonic()
        assert (up(), registry.get_sample_value("mammography_workers", {"study": "s"})) == (0, None)
        assert time.monotonic() - began < 2.0
    deadline = time.monotonic() + 10
    while not up():
        assert time.monotonic() < deadline


def test_database_that_is_gone(make_study: MakeStudy, storage: StudyStorage, database_url: sa.URL) -> None:
    """Nothing but that it is not up; the process lives on."""
    study = make_study(trials=2)
    assert scrape(study)("up") == 1
    admin = sa.create_engine(database_url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    moved = f"{database_url.database}_away"
    storage.engine.dispose()
    with admin.connect() as connection:
        connection.exec_driver_sql(f"alter database {database_url.database} rename to {moved}")
        gone = scrape(study)
        connection.exec_driver_sql(f"alter database {moved} rename to {database_url.database}")
    assert (gone("up"), gone.names) == (0, {"mammography_up"})
    assert scrape(study)("up") == 1


def test_port_that_is_taken(make_study: MakeStudy) -> None:
    """The error names the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"):
            serve(make_study(trials=2), port=port)


def test_command_says_where_and_ends_in_order(make_study: MakeStudy, database_url: sa.URL, tmp_path: Path) -> None:
    """On loopback; with 0 after SIGTERM, as a service manager expects."""
    make_study(trials=2)
    command = [sys.executable, "-m", "hpo.cli", "metrics", "s", "--port", "0", "--outputs", str(tmp_path)]
    environment = {**os.environ, "MAMMOGRAPHY_DATABASE_URL": database_url.render_as_string(hide_password=False)}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=unblock_signals,  # noqa: PLW1509 - async-signal-safe: one system call
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said.startswith("metrics: http://127.0.0.1:")
    assert 'mammography_up{study="s"} 1.0' in fetched(said.split()[1])
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0
