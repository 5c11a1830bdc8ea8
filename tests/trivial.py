"""A trivial function in place of training, through the same door as the worker: `python -m tests.trivial URL STUDY_ID`."""

from __future__ import annotations

import argparse
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
import sqlalchemy as sa
from optuna.distributions import FloatDistribution

from hpo.hang import Tolerance
from hpo.worker import Attention, Outcome, Work, Worker
from storage import ledger
from storage.claims import Claim, Claims, Ending
from storage.study_storage import StudyStorage, open_storage

SPACE = {"x": FloatDistribution(0.0, 1.0)}


@dataclass
class Trivial:
    """Takes no time and leaves no file."""

    claims: Claims
    folder: Path | None = None
    """For the log."""
    hangs: bool = False

    def train(self, claim: Claim, attention: Attention) -> Outcome:  # noqa: ARG002 - it is not asked for long
        """Return a value that follows from the trial's parameter, or never."""
        while self.hangs:
            time.sleep(1)
        return Outcome(Ending.COMPLETE, value=self.propose(claim))

    def propose(self, claim: Claim) -> float:
        """Settle the trial's parameter, which follows from its number, and return it."""
        x = (claim.number * 0.6180339887) % 1
        self.claims.settle_parameters(claim, {"x": x}, SPACE)
        return x

    def record(self, claim: Claim, outcome: Outcome) -> Outcome:  # noqa: ARG002 - it leaves no file
        """Return how it ended."""
        return outcome

    def settle(self, claim: Claim) -> None:
        """Do nothing."""

    def log(self, claim: Claim) -> Path | None:  # noqa: ARG002 - one for all
        """Return the log, where there is a folder for it."""
        return None if self.folder is None else self.folder / "run.log"

    def forget(self) -> None:
        """Do nothing."""

    def tidy(self) -> bool:
        """Return that there is nothing to do."""
        return False


def make_study(storage: StudyStorage, limits: ledger.Limits, name: str = "s") -> int:
    """Create a study without data and return its id."""
    study = optuna.create_study(storage=storage.optuna, study_name=name, direction="maximize")
    with storage.engine.begin() as connection:
        assert ledger.register(
            connection,
            study_id=study._study_id,
            resolved={},
            data_hash="d",
            folds_hash="f",
            folds_csv="",
            limits=limits,
        )
    return study._study_id


def claims_of(storage: StudyStorage, study_id: int, *, grace_s: float = 30.0) -> Claims:
    """Return the claims of a study as this process sees them."""
    return Claims(storage.engine, study_id, f"worker {os.getpid()}", "cpu", "cpu", grace_s)


def main() -> None:
    """Work until nothing is left; a trial that hangs is given up after a second."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("study_id", type=int)
    parser.add_argument("--grace", type=float, default=30.0, help="seconds after which a silent worker is lost")
    parser.add_argument("--hang", type=Path, metavar="FOLDER", help="never come to an end; the log goes there")
    asked = parser.parse_args()
    storage = open_storage(sa.make_url(asked.url), application_name="trivial")
    claims = claims_of(storage, asked.study_id, grace_s=asked.grace)
    work = Trivial(claims, asked.hang, hangs=asked.hang is not None)
    tolerance = Tolerance(first_s=1.0) if work.hangs else Tolerance()
    Worker(claims, work, threading.Event(), tolerance=tolerance).run()


def _fits(work: Trivial) -> Work:
    return work


if __name__ == "__main__":
    main()
