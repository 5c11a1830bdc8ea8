"""
What a search costs its database: statements and commits a trial, which repeat exactly, and the time of a claim.

A trial is a real one, trained by a real worker on a tiny archive: six parameters proposed by tpe, five folds, twelve epochs.
Heartbeats are left out; nothing is uploaded. A claim is timed in two studies in turns, one that is empty and one with many
finished trials.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import sqlalchemy as sa

from hpo.creation import create
from hpo.gallery import Gallery
from hpo.logs import quiet_optuna
from hpo.objective import Training
from hpo.station import set_up_station
from hpo.study import DataPlace, Study
from hpo.study_file import StudyFile
from hpo.worker import Worker
from storage import ledger
from storage.artifact_store import open_artifacts
from storage.claims import Claim, Claims, Ending
from storage.patience import Patience
from storage.private_server import PrivateServer
from storage.study_storage import StudyStorage, open_storage
from storage.tree import OutputTree
from trainer.data.phantom import make_phantom

SEARCH = {
    "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "backbone_lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
    "weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
    "label_smoothing": {"type": "float", "low": 0.0, "high": 0.2},
    "warmup_epochs": {"type": "int", "low": 0, "high": 3},
    "class_weights": {"type": "categorical", "choices": ["none", "auto"]},
}


@dataclass
class Counts:
    """Statements that this process sent, and commits, since it was last asked."""

    statements: Counter[str] = field(default_factory=Counter)
    commits: int = 0

    def listen(self, engine: sa.Engine) -> None:
        """Count from now on."""

        @sa.event.listens_for(engine, "before_cursor_execute")
        def _(connection: sa.Connection, _cursor: object, statement: str, *_: object) -> None:
            if "mammography.beat" not in statement:
                self.statements[" ".join(statement.split())[:70]] += 1
                self.commits += connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"

        @sa.event.listens_for(engine, "commit")
        def _commit(_: sa.Connection) -> None:
            self.commits += 1


MOST_STATEMENTS = 150
MOST_TIMES_AS_LONG = 2.0


def main() -> int:
    """Measure and print two tables; return 1 if a target is missed."""
    asked = parse()
    quiet_optuna()
    with tempfile.TemporaryDirectory(prefix="mb-") as name, server(Path(name)) as storage:
        statements = count_a_trial(Path(name), storage, pruning=asked.pruning, show=asked.show)
        ratio = time_claims(storage, asked.trials, asked.rounds)
    missed = statements > MOST_STATEMENTS or ratio > MOST_TIMES_AS_LONG
    targets = f"at most {MOST_STATEMENTS} statements, at most {MOST_TIMES_AS_LONG:g} times as long"
    print(f"\ntargets: {targets}: {'missed' if missed else 'met'}")
    return int(missed)


@contextmanager
def server(folder: Path) -> Iterator[StudyStorage]:
    """Give the storage of a private server that is there for the measurement alone."""
    private = PrivateServer(folder / "outputs")
    private.start()
    storage = open_storage(private.url, application_name="benchmark")
    try:
        yield storage
    finally:
        storage.engine.dispose()
        private.stop()


def count_a_trial(folder: Path, storage: StudyStorage, *, pruning: str, show: bool) -> int:
    """Train trials as a worker does, print what each of them asked of the database, and return the most statements."""
    make_phantom(folder / "data", patients=40, side=64, imbalance=1.0)
    tree = OutputTree(folder / "outputs")
    file = StudyFile.model_validate(
        {
            "study": "counted",
            "cv": {"folds": 5},
            "train": {"arch": "test_efficientnet", "weights": "none", "img_size": 32, "epochs": 12, "batch_size": 16},
            "search": SEARCH,
            "sampler": {"name": "tpe", "startup_trials": 1},
            "pruning": {"name": pruning},
            "budget": {"trials": 3},
            "data": {"csv": folder / "data" / "classificacao.csv", "dicom_root": folder / "data" / "archive"},
        }
    )
    study = create(file, DataPlace.choose(file, tree, csv=None, dicom_root=None), tree, storage, None)
    print(f"statements and commits a trial of {len(SEARCH)} parameters, 5 folds, 12 epochs; pruning: {pruning}\n")
    print("trial   statements   commits")
    counts = Counts()
    counts.listen(storage.engine)
    worker, most = _worker(study, tree), 0
    for number in range(3):
        before, commits = counts.statements.copy(), counts.commits
        claim = worker.claims.claim()
        assert isinstance(claim, Claim)  # noqa: S101 - the budget was made for it
        worker._take(claim)  # noqa: SLF001 - one trial of a worker's
        made = counts.statements - before
        most = max(most, made.total())
        print(f"{number:5d} {made.total():12d} {counts.commits - commits:9d}")
    if show:
        print()
        for statement, times in made.most_common():
            print(f"{times:5d}  {statement}")
    return most


def _worker(study: Study, tree: OutputTree) -> Worker:
    stop = threading.Event()
    station = set_up_station(
        study,
        tree,
        device="cpu",
        per_gpu=1,
        threads=1,
        patience=Patience(stop=stop),
        stop=stop,
        csv=None,
        dicom_root=None,
    )
    gallery = Gallery.open(station, open_artifacts(str(tree.root / "artifacts")))
    return Worker(station.claims, Training(station, gallery), stop)


def time_claims(storage: StudyStorage, trials: int, rounds: int) -> float:
    """Claim in turns in an empty study and in one with *trials* finished ones; print the medians, return their ratio."""
    empty, full = (_claims(storage, name) for name in ("empty", "full"))
    _fill(storage, full.study_id, trials)
    for claims in (empty, full):  # what is finished is counted once
        _claim_and_finish(claims)
    times = [(_claim_and_finish(empty), _claim_and_finish(full)) for _ in range(rounds)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    print(f"\na claim, in turns, median of {rounds}: {medians[0]:.2f} ms in an empty study,")
    print(f"{medians[1]:.2f} ms after {trials} finished trials: {medians[1] / medians[0]:.2f} times as long")
    return float(medians[1] / medians[0])


def _claims(storage: StudyStorage, name: str) -> Claims:
    study = optuna.create_study(storage=storage.optuna, study_name=name, direction="maximize")
    with storage.engine.begin() as connection:
        ledger.register(
            connection,
            study_id=study._study_id,  # noqa: SLF001 - Optuna has no public name for it
            resolved={},
            data_hash="",
            folds_hash="",
            folds_csv="",
            limits=ledger.Limits(10**6),
        )
    return Claims(storage.engine, study._study_id, "benchmark", "cpu", "cpu", grace_s=30)  # noqa: SLF001 - as above


def _fill(storage: StudyStorage, study_id: int, trials: int) -> None:
    """Give a study so many finished trials, each with its claim, its attempt and a parameter."""
    with storage.engine.begin() as connection:
        for statement in (
            (
                "insert into trials (number, study_id, state, datetime_start, datetime_complete)"
                " select n, :study, 'COMPLETE', now(), now() from generate_series(0, :last) n order by n"
            ),
            (
                "insert into mammography.claim (trial_id, study_id, configuration)"
                " select trial_id, study_id, number from trials where study_id = :study"
            ),
            (
                "insert into mammography.attempt (trial_id, number, token, worker, device, gpus, environment, ended_at, ending)"
                " select trial_id, 0, gen_random_uuid(), 'w', 'cpu', 0, '{}', now(), 'complete' from trials"
                " where study_id = :study"
            ),
            (
                "insert into trial_values (trial_id, objective, value, value_type)"
                " select trial_id, 0, random(), 'FINITE' from trials where study_id = :study"
            ),
        ):
            connection.execute(sa.text(statement), {"study": study_id, "last": trials - 1})


def _claim_and_finish(claims: Claims) -> float:
    """Claim a trial, finish it, and return the milliseconds of the claim."""
    began = time.perf_counter()
    claim = claims.claim()
    took_ms = 1000 * (time.perf_counter() - began)
    assert isinstance(claim, Claim)  # noqa: S101 - the budget is large
    claims.finish(claim, Ending.COMPLETE, value=0.5, attributes={})
    return took_ms


def parse() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--trials", type=int, default=10_000, help="finished trials of the full study [10000]")
    parser.add_argument("--rounds", type=int, default=300, help="claims in each study [300]")
    parser.add_argument("--pruning", default="auto", choices=["auto", "none"], help="of the counted trials [auto]")
    parser.add_argument("--show", action="store_true", help="show the last trial's statements")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
