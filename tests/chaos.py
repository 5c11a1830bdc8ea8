"""What goes wrong with machines, done to a search on purpose: kills, freezes, a database that dies."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from storage.private_server import PrivateServer
from storage.server_home import known_state
from tests.laboratory import Laboratory

STUDY = """\
study: small
cv: {folds: 3}
train: {arch: test_efficientnet, weights: none, img_size: 32, epochs: 6, batch_size: 8}
search:
  lr: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  weight_decay: {type: float, low: 0.0, high: 0.1}
  class_weights: {type: categorical, choices: [none, auto]}
sampler: {name: random}
budget: {trials: TRIALS}
"""
"""Proposals that depend on a trial's number alone, so that a disturbed search is comparable with an undisturbed one."""


def workers_of(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the worker processes that a launcher has at the moment."""
    try:
        return [child for child in psutil.Process(launcher.pid).children() if "worker" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def kill_workers(
    laboratory: Laboratory, launcher: subprocess.Popen[str], times: int, epochs: int, dice: random.Random
) -> None:
    """
    Kill a random worker with -9 so many times at random moments of a search that has so many epochs in all.

    The moments follow the progress and not the clock, so that a fast machine is disturbed as often as a slow one.
    """
    for moment in sorted(dice.sample(range(epochs * 9 // 10), times)):
        while epochs_told(laboratory) < moment:
            assert launcher.poll() is None, "the search was over before the last kill"
            time.sleep(0.05)
        time.sleep(dice.uniform(0.0, 1.0))
        wait_until(lambda: workers_of(launcher))
        dice.choice(workers_of(launcher)).kill()


def epochs_told(laboratory: Laboratory) -> int:
    """Return how many epochs of its studies a laboratory's database knows of; none while it is away."""
    engine = sa.create_engine(PrivateServer(laboratory.outputs).url, poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            return int(connection.scalar(sa.text("select count(*) from mammography.epoch")) or 0)
    except sa.exc.OperationalError:
        return 0


def kill_database(laboratory: Laboratory) -> None:
    """Kill the private server of a laboratory with -9, all its processes at once, and start it again."""
    server = PrivateServer(laboratory.outputs)
    data = (known_state(server.folder) or server.folder) / "data"
    postmaster = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    for process in (postmaster, *postmaster.children()):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    server.start()


@contextmanager
def frozen(process: psutil.Process, seconds: float) -> Iterator[None]:
    """Freeze a process, give time to look at what the others do, and let it go on after so many seconds at least."""
    thaw_at = time.monotonic() + seconds
    process.send_signal(signal.SIGSTOP)
    try:
        yield
        time.sleep(max(0.0, thaw_at - time.monotonic()))
    finally:
        process.send_signal(signal.SIGCONT)


def finish(launcher: subprocess.Popen[str], timeout_s: float) -> str:
    """Wait for the end of a launcher, which must be a good one, and return what it said."""
    _, err = launcher.communicate(timeout=timeout_s)
    assert launcher.returncode == 0, err
    return err


def check_exact(laboratory: Laboratory, trials: int, state: str = "finished") -> None:
    """
    Check that a study ended with exactly so many trials, nothing failed or running, and no work done twice.

    Every epoch of every fold was trained and told exactly once, whatever the number of attempts: so no finished fold was
    trained again, and an interruption cost the epoch it fell into and no more.
    """
    status = laboratory.status()
    assert status["trials"] == {"running": 0, "waiting": 0, "complete": trials, "pruned": 0, "fail": 0}
    assert (status["state"], status["budget"]["spent"], status["workers"]) == (state, trials, [])
    configurations = set()
    for number in range(trials):
        record = laboratory.record(number)
        told = [
            (int(fold), epoch)
            for attempt in record["attempts"]
            for fold, epochs in attempt["epochs"].items()
            for epoch in epochs
        ]
        assert sorted(told) == [(fold, epoch) for fold in range(3) for epoch in range(6)], (number, record["attempts"])
        assert [attempt["ending"] for attempt in record["attempts"]].count("complete") == 1
        configurations.add(json.dumps(record["params"], sort_keys=True))
        assert not list((laboratory.outputs / "small" / f"trial_{number:04d}").glob(".attempt-*"))
    assert len(configurations) == trials


def numbers(laboratory: Laboratory, name: str = "small") -> dict[str, bytes]:
    """Return the out-of-fold predictions of every trial, by its folder's name: equal bytes are equal bits."""
    files = sorted((laboratory.outputs / name).glob("trial_*/oof_predictions.csv"))
    return {path.parent.name: path.read_bytes() for path in files}


def undisturbed(laboratory: Laboratory, trials: int, workers: int) -> dict[str, bytes]:
    """Run the same study undisturbed, in the same place and with the same threads, and return its predictions."""
    laboratory.study(STUDY.replace("TRIALS", str(trials)).replace("study: small", "study: calm"))
    laboratory.ok("launch", "calm", "--workers", workers, timeout_s=1800)
    return numbers(laboratory, "calm")


def wait_until(condition: Callable[[], Any], timeout_s: float = 120) -> None:
    """Wait until *condition* () is true."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.2)


def attempts_of(laboratory: Laboratory, name: str = "small") -> list[Path]:
    """Return the folders of the attempts that are under way or were left behind."""
    return sorted((laboratory.outputs / name).glob("trial_*/.attempt-*"))
