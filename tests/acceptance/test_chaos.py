"""
A search among kills, freezes and a dying database: the same numbers, the exact budget, nothing twice.

At full length with `make test-chaos`; the tests without the mark are the short form, which always runs.
"""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import psutil
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from storage import ledger, steering
from storage.database import open_database
from storage.ledger import Limits
from storage.study_storage import open_storage
from tests.chaos import (
    STUDY,
    attempts_of,
    check_exact,
    epochs_told,
    finish,
    frozen,
    kill_database,
    kill_workers,
    numbers,
    undisturbed,
    wait_until,
    workers_of,
)
from tests.conftest import PROJECT
from tests.laboratory import Laboratory
from tests.trivial import make_study

full = pytest.mark.chaos
DICE = random.Random(7)  # noqa: S311 - moments to kill at


@pytest.mark.parametrize(
    ("trials", "workers", "kills"),
    [pytest.param(2, 2, 2), pytest.param(24, 4, 40, marks=[full, pytest.mark.timeout(3000)])],
)
def test_killed_workers(laboratory: Laboratory, trials: int, workers: int, kills: int) -> None:
    """`kill -9` at random moments: the exact budget, and the numbers of an undisturbed search to the bit."""
    laboratory.study(STUDY.replace("TRIALS", str(trials)))
    launcher = laboratory.start("launch", "small", "--workers", workers)
    kill_workers(laboratory, launcher, kills, trials * 3 * 6, DICE)
    finish(launcher, 2400)
    check_exact(laboratory, trials)
    assert numbers(laboratory) == undisturbed(laboratory, trials, workers)


@pytest.mark.parametrize(("trials", "times"), [pytest.param(12, 10, marks=[full, pytest.mark.timeout(3000)])])
def test_killed_database(laboratory: Laboratory, trials: int, times: int) -> None:
    """The server dies and comes back: no worker ends, nothing is lost, nothing is done twice, and the numbers are the same."""
    laboratory.study(STUDY.replace("TRIALS", str(trials)))
    launcher = laboratory.start("launch", "small", "--workers", 2)
    wait_until(lambda: attempts_of(laboratory))
    for moment in sorted(DICE.sample(range(trials * 3 * 6 * 8 // 10), times)):
        wait_until(lambda moment=moment: epochs_told(laboratory) >= moment)  # type: ignore[misc]
        assert launcher.poll() is None, "the search was over before the last kill"
        time.sleep(DICE.uniform(0.0, 0.5))
        kill_database(laboratory)
    said = finish(launcher, 2400)
    assert "ended (" not in said, "no worker ended"
    check_exact(laboratory, trials)
    assert numbers(laboratory) == undisturbed(laboratory, trials, 2)


@full
def test_database_that_stays_away(laboratory: Laboratory) -> None:
    """The worker trains on; past its patience it leaves with one line, and another one goes on from what was saved meanwhile."""
    laboratory.study(STUDY.replace("TRIALS", "1").replace("epochs: 6", "epochs: 40"))
    worker = laboratory.start("worker", "small", "--threads", 1, "--patience", 6)
    wait_until(lambda: epochs_told(laboratory) >= 2)
    laboratory.ok("db", "stop")
    _, err = worker.communicate(timeout=120)
    assert worker.returncode == 1, err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("mammography: ")] == lines[-1:]
    away = next(index for index, line in enumerate(lines) if "database away" in line)
    assert sum(" epoch " in line for line in lines[away:]) >= 3, "it trained on"
    saved = sum(" epoch " in line for line in lines)
    laboratory.ok("worker", "small", "--threads", 1)
    attempts = laboratory.record(0)["attempts"]
    assert [attempt["ending"] for attempt in attempts] == ["lost", "complete"]
    told = [[len(epochs) for epochs in attempt["epochs"].values()] for attempt in attempts]
    assert (sum(told[0]), sum(map(sum, told))) == (saved, 120), (
        "what was saved while the database was away is not trained again"
    )


@full
@pytest.mark.timeout(3000)
def test_frozen_workers(laboratory: Laboratory) -> None:
    """Ten times a worker is frozen for longer than the grace period and then goes on: nothing of its late work counts."""
    laboratory.study(STUDY.replace("TRIALS", "1000"))
    launcher = laboratory.start("launch", "small", "--workers", 3)
    wait_until(lambda: len(workers_of(launcher)) == 3 and attempts_of(laboratory))
    for _ in range(5):
        time.sleep(DICE.uniform(3.0, 8.0))
        before = laboratory.status()["budget"]["spent"]
        first, second = DICE.sample(workers_of(launcher), 2)
        with frozen(first, 36.0), frozen(second, 36.0):
            wait_until(lambda before=before: laboratory.status()["budget"]["spent"] > before, 60)  # type: ignore[misc]
    laboratory.ok("study", "stop", "small")
    said = finish(launcher, 600)
    assert "ended (" not in said, "no worker ended"
    trials = laboratory.status()["trials"]["complete"]
    check_exact(laboratory, trials, "stopped")
    endings = [each["ending"] for number in range(trials) for each in laboratory.record(number)["attempts"]]
    assert endings.count("lost") >= 5, "most of the frozen ones held a trial"


@full
def test_frozen_while_claiming_and_telling(database_url: sa.URL) -> None:
    """A hundred freezes past the grace period among claims and ends: the others go on, and each trial has one value."""
    storage = open_storage(database_url, application_name="test")
    study_id = make_study(storage, Limits(10**6))
    url = database_url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "tests.trivial", url, str(study_id), "--grace", "1"]
    running = [subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE) for _ in range(6)]

    def spent() -> int:
        return ledger.budget(storage.engine, study_id).spent

    wait_until(lambda: spent() > 0)
    for _ in range(25):
        with ExitStack() as freezer:
            for process in DICE.sample(running, 4):
                time.sleep(DICE.uniform(0.0, 0.02))
                freezer.enter_context(frozen(psutil.Process(process.pid), 1.5))
            before = spent()
            wait_until(lambda before=before: spent() > before, 10)  # type: ignore[misc]
    steering.stop(storage.engine, study_id, "asked")
    said = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 6, said
    trials = storage.optuna.get_all_trials(study_id)
    assert [(trial.number, trial.state) for trial in trials] == [(n, TrialState.COMPLETE) for n in range(spent())]
    assert all(trial.value == trial.params["x"] for trial in trials)
    with storage.engine.connect() as connection:
        lost = connection.scalar(sa.text("select count(*) from mammography.attempt where ending = 'lost'"))
    assert lost, "some were frozen while they held a trial"


@full
def test_frozen_worker_loses_its_trial(laboratory: Laboratory) -> None:
    """Frozen in the middle of a fold past the grace period: another finishes the trial, and it has one value."""
    laboratory.study(STUDY.replace("TRIALS", "1").replace("epochs: 6", "epochs: 40"))
    late = laboratory.start("worker", "small", "--threads", 1)
    wait_until(lambda: laboratory.status()["workers"] and laboratory.status()["workers"][0]["epoch"] is not None)
    with frozen(psutil.Process(late.pid), 0.0):
        laboratory.ok("worker", "small", "--threads", 1)
        value = laboratory.record(0)["value"]
    _, err = late.communicate(timeout=60)
    assert late.returncode == 0, err
    record = laboratory.record(0)
    assert [attempt["ending"] for attempt in record["attempts"]] == ["lost", "complete"]
    assert record["value"] == value
    assert attempts_of(laboratory) == []


@pytest.mark.parametrize(("trials", "times"), [pytest.param(8, 5, marks=[full, pytest.mark.timeout(3000)])])
def test_stopped_and_started_again(laboratory: Laboratory, trials: int, times: int) -> None:
    """SIGTERM to the launcher, obeyed within ten seconds each time; in the end the numbers of an undisturbed search."""
    laboratory.study(STUDY.replace("TRIALS", str(trials)))
    for _ in range(times):
        launcher = laboratory.start("launch", "small", "--workers", 2)
        wait_until(lambda: attempts_of(laboratory))
        time.sleep(DICE.uniform(0.5, 5.0))
        launcher.send_signal(signal.SIGTERM)
        asked_at = time.monotonic()
        finish(launcher, 60)
        assert time.monotonic() - asked_at < 10
        assert laboratory.status()["workers"] == []
    laboratory.ok("launch", "small", "--workers", 2, timeout_s=1200)
    check_exact(laboratory, trials)
    assert numbers(laboratory) == undisturbed(laboratory, trials, 2)


@full
def test_stop_in_the_middle_of_a_long_step(laboratory: Laboratory) -> None:
    """A step that takes longer than ten seconds does not hold the exit up: the trial is free at once, and the exit in order."""
    laboratory.study(
        STUDY.replace("TRIALS", "1").replace(
            "arch: test_efficientnet, weights: none, img_size: 32, epochs: 6, batch_size: 8",
            "arch: tf_efficientnet_lite0, weights: none, img_size: 448, epochs: 6, batch_size: 64, loader_heuristics: false",
        )
    )
    worker = laboratory.start("worker", "small", "--threads", 1)
    wait_until(lambda: attempts_of(laboratory))
    time.sleep(4)
    worker.send_signal(signal.SIGTERM)
    asked_at = time.monotonic()
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 0, err
    assert time.monotonic() - asked_at < 10
    status = laboratory.status()
    assert (status["state"], status["workers"], status["trials"]["running"]) == ("waiting", [], 1)


@full
@pytest.mark.parametrize("what", ["disk", "folder"])
def test_worker_whose_disk_fails_leaves_and_the_study_goes_on(laboratory: Laboratory, what: str) -> None:
    """A disk that is full, an output folder that vanishes: one line, exit 1, and another worker finishes the study."""
    laboratory.study(STUDY.replace("TRIALS", "1"))
    study = laboratory.outputs / "small"
    if what == "disk":
        worker = laboratory.start("worker", "small", preexec=no_file_larger_than(1 << 20))
    else:
        worker = laboratory.start("worker", "small")
        wait_until(lambda: laboratory.status()["workers"] and laboratory.status()["workers"][0]["epoch"] is not None)
        study.rename(study.with_name("away"))
    _, err = worker.communicate(timeout=120)
    assert worker.returncode == 1, err
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("mammography: ")] == err.splitlines()[-1:]
    if what == "folder":
        assert not study.exists()
        study.with_name("away").rename(study)
    laboratory.ok("worker", "small")
    check_exact(laboratory, 1)


def no_file_larger_than(size: int) -> Callable[[], None]:
    """Return what makes every write beyond *size* bytes of a file fail in a process, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    ("processes", "budget", "kills"),
    [
        pytest.param(6, 60, 6),
        pytest.param(64, 1000, 0, marks=[full, pytest.mark.timeout(1200)]),
        pytest.param(16, 1000, 100, marks=[full, pytest.mark.timeout(1200)]),
    ],
)
def test_many_processes_through_the_workers_door(database_url: sa.URL, processes: int, budget: int, kills: int) -> None:
    """A trivial function in place of training, killed while it claims and tells: exactly the budget, and no error."""
    storage = open_storage(database_url, application_name="test")
    study_id = make_study(storage, Limits(budget))
    url = database_url.render_as_string(hide_password=False)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.trivial", url, str(study_id)], cwd=PROJECT, stderr=subprocess.PIPE
        )

    running = [start() for _ in range(processes)]
    for _ in range(kills):
        time.sleep(DICE.uniform(0.0, 0.3))
        victim = running.pop(DICE.randrange(len(running)))
        victim.kill()
        victim.communicate()
        running.append(start())
    said = [process.communicate(timeout=600)[1] for process in running]
    assert [process.returncode for process in running] == [0] * processes, said
    trials = storage.optuna.get_all_trials(study_id)
    assert [trial.number for trial in trials] == list(range(budget))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert ledger.budget(storage.engine, study_id).spent == budget
    if kills == 0:
        held_ms = lock_held_ms(storage.engine)
        assert held_ms < 5, f"the study's lock was held for a median of {held_ms:.2f} ms a claim"


@pytest.mark.parametrize("times", [pytest.param(1), pytest.param(10, marks=full)])
def test_four_workers_never_propose_the_same(database_url: sa.URL, times: int) -> None:
    """Four at once with tpe and a budget of twenty: twenty every time, with twenty configurations."""
    storage = open_storage(database_url, application_name="test")
    url = database_url.render_as_string(hide_password=False)
    for number in range(times):
        study_id = make_study(storage, Limits(20), f"study {number}")
        command = [sys.executable, "-m", "tests.proposing", url, str(study_id), "tpe"]
        started = [subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE) for _ in range(4)]
        said = [process.communicate(timeout=120)[1] for process in started]
        assert [process.returncode for process in started] == [0] * 4, said
        trials = storage.optuna.get_all_trials(study_id)
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 20
        assert len({str(sorted(trial.params.items())) for trial in trials}) == 20


def lock_held_ms(engine: sa.Engine) -> float:
    """
    Return the median time between two claims that got the study's lock one after the other, in milliseconds.

    An attempt's start is taken under the lock. With many waiting for it, the next one has it as soon as it is free.
    """
    with engine.connect() as connection:
        return float(
            connection.execute(
                sa.text(
                    "select 1000 * percentile_cont(0.5) within group (order by gap) from (select extract(epoch from"
                    " started_at - lag(started_at) over (order by started_at)) as gap from mammography.attempt) each"
                )
            ).scalar_one()
        )


@pytest.mark.parametrize("times", [pytest.param(1), pytest.param(5, marks=full)])
def test_eight_at_once_on_an_empty_database(database_url: sa.URL, times: int) -> None:
    """Eight commands that start together make the tables once, and none of them fails."""
    url = database_url.render_as_string(hide_password=False)
    for _ in range(times):
        with open_database(url, application_name="test").begin() as connection:
            connection.exec_driver_sql("drop schema if exists mammography cascade")
            connection.exec_driver_sql("drop schema public cascade")
            connection.exec_driver_sql("create schema public")
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "hpo.cli", "study", "list", "--database", url],
                cwd=PROJECT, stderr=subprocess.PIPE, text=True,
            )
            for _ in range(8)
        ]  # fmt: skip
        said = [process.communicate(timeout=120)[1] for process in started]
        assert [process.returncode for process in started] == [0] * 8, said
