"""The launcher with real processes that are not workers: what ends, what is started again, what is left behind."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from hpo.launcher import Launcher, Slot
from hpo.settings import Settings
from hpo.status import Status, worker_name
from storage.ledger import Budget, WorkerState

SLEEP = "import time; time.sleep(60)"


@dataclass
class Watching:
    """What the launcher sees of the study, and what it starts."""

    left: int = 1
    claims: Path | None = None
    """A file with the processes that finished an epoch; a killed one's claim is still there."""
    shown: list[Status] = field(default_factory=list)
    looked: int = 0
    fails_at: int | None = None
    """Number of the look at which the database is gone for good."""
    stop: threading.Event = field(default_factory=threading.Event)
    stop_when: Callable[[], bool] = lambda: False

    def look(self) -> Status:
        """Return the study's state."""
        self.looked += 1
        if self.looked == self.fails_at:
            raise ConnectionError("gone")
        if self.stop_when():
            self.stop.set()
        now = datetime.now(UTC)
        return Status(
            study="s",
            state="running" if self.left else "finished",
            direction="maximize",
            trials={},
            budget=Budget(
                asked=1,
                spent=1 - self.left,
                left=self.left,
                hours=None,
                gpu_hours=None,
                deadline=None,
                ended=None,
                stop_reason=None,
            ),
            best=None,
            seconds_left=None,
            workers=[
                WorkerState(
                    name=worker_name(int(pid)),
                    device="cpu",
                    trial=0,
                    fold=0,
                    epoch=0,
                    images_per_second=1.0,
                    last_heartbeat=now,
                )
                for pid in (self.claims.read_text().split() if self.claims and self.claims.exists() else [])
            ],
        )

    def launcher(self, folder: Path, code: str) -> Launcher:
        """Return a launcher whose one worker runs *code*."""
        return Launcher(
            command=[sys.executable, "-c", code],
            slots=[Slot(0, None, 1)],
            settings=Settings.resolve(database=None, outputs=folder),
            log_folder=folder / "workers",
            look=self.look,
            show=self.shown.append,
            repair=lambda: None,
            stop=self.stop,
            first_delay_s=0.0,
        )


def children() -> list[int]:
    """Return the processes that a launcher started and did not see end."""
    return [
        child.pid
        for child in psutil.Process().children()
        if child.status() == "zombie"
        or ("-c" in child.cmdline() and "multiprocessing" not in " ".join(child.cmdline()))
    ]  # other tests of this process leave the servers of multiprocessing behind


def test_worker_that_was_not_listening_yet_obeys_too(tmp_path: Path) -> None:
    """A worker that the signal meets while Python still starts has claimed nothing: its end by the signal is in order."""
    watching = Watching(stop_when=lambda: bool(children()))
    assert watching.launcher(tmp_path, SLEEP).run() == 0
    assert children() == []


def test_worker_that_does_not_save_makes_the_stop_a_failure(tmp_path: Path) -> None:
    """Asked to stop, a worker that ends with an error is no stop in order."""
    ready = tmp_path / "ready"
    code = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit(1)); open({str(ready)!r}, 'w'); time.sleep(60)"
    watching = Watching(stop_when=ready.exists)
    assert watching.launcher(tmp_path, code).run() == 1


def test_no_worker_outlives_a_launcher_that_fails(tmp_path: Path) -> None:
    """When the launcher cannot look at the study any more it ends its workers before it ends."""
    watching = Watching(fails_at=3)
    with pytest.raises(ConnectionError):
        watching.launcher(tmp_path, SLEEP).run()
    assert children() == []


@pytest.mark.parametrize(("code", "left", "expected"), [(0, 0, 0), (2, 1, 2), (0, 1, 1), (2, 0, 0)])
def test_exit_codes_of_workers_that_end_for_good(tmp_path: Path, code: int, left: int, expected: int) -> None:
    """Done and wrong input are final; what counts in the end is whether the budget is spent."""
    assert Watching(left=left).launcher(tmp_path, f"raise SystemExit({code})").run() == expected


def test_worker_that_gets_nowhere_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Five starts in a row without an epoch, though others may spend budget meanwhile: exit 1, with its last words."""
    with caplog.at_level(logging.WARNING, "hpo"):
        assert Watching().launcher(tmp_path, "raise SystemExit('no such GPU')").run() == 1
    assert "worker 0 given up: no such GPU" in caplog.messages
    assert caplog.messages[-1] == "all workers ended, and the study is not finished"
    assert sum("worker 0 ended" in message for message in caplog.messages) == 4


def test_worker_that_advances_is_started_again_however_often_it_is_killed(tmp_path: Path) -> None:
    """A worker that finishes an epoch every time is worth another start, also where no trial gets finished."""
    claims = tmp_path / "claims"
    code = f"import os; open({str(claims)!r}, 'a').write(f'{{os.getpid()}}\\n'); os.kill(os.getpid(), 9)"
    watching = Watching(claims=claims, stop_when=lambda: claims.exists() and len(claims.read_text().split()) > 6)
    assert watching.launcher(tmp_path, code).run() == 0
    assert len(claims.read_text().split()) > 6
