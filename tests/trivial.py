"""A trivial function in place of training, through the same door as the worker: `python -m tests.trivial URL STUDY_ID`."""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages import BaseStorage

from hpo import sampling
from hpo.hang import Tolerance
from hpo.search_space import SearchSpace
from hpo.status import worker_name
from hpo.study_file import SamplerSection, StudyFile
from hpo.worker import Attention, Outcome, Work, Worker
from storage import ledger
from storage.claims import Claim, Claims, Ending
from storage.study_storage import StudyStorage, open_storage

SEARCH = {
    "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "arch": {"type": "categorical", "choices": ["efficientnet_b0", "resnet50"]},
    "dropout": {"type": "float", "low": 0.0, "high": 0.5, "when": {"arch": "efficientnet_b0"}},
}


@dataclass
class Trivial:
    """Proposes as a search does, takes no time, and leaves no file."""

    claims: Claims
    storage: BaseStorage
    folder: Path | None = None
    """For the log."""
    hangs: bool = False
    sampler: SamplerSection = field(default_factory=lambda: SamplerSection(name="random"))
    space: SearchSpace = field(default_factory=lambda: space_of(SEARCH))

    def train(self, claim: Claim, attention: Attention) -> Outcome:  # noqa: ARG002 - it is not asked for long
        """Return a value that follows from the trial's parameters, or never."""
        while self.hangs:
            time.sleep(1)
        params = sampling.settle_parameters(
            self.claims, claim, self.storage, study_name="s", study_seed=1, section=self.sampler, space=self.space
        )
        return Outcome(Ending.COMPLETE, value=params["lr"])

    def record(self, claim: Claim, outcome: Outcome) -> None:
        """Do nothing."""

    def settle(self, claim: Claim) -> None:
        """Do nothing."""

    def log(self, claim: Claim) -> Path | None:  # noqa: ARG002 - one for all
        """Return the log, where there is a folder for it."""
        return None if self.folder is None else self.folder / "run.log"

    def forget(self) -> None:
        """Do nothing."""

    def tidy(self) -> None:
        """Do nothing."""


def space_of(search: Mapping[str, Any]) -> SearchSpace:
    """Return the search space of a study file whose `search` this is."""
    return StudyFile.model_validate({"study": "s", "search": search, "budget": {"trials": 1}}).space()


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
    return Claims(storage.engine, study_id, worker_name(os.getpid()), "cpu", "cpu", grace_s)


def main() -> None:
    """Work until nothing is left; a trial that hangs is given up after a second."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("study_id", type=int)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--hang", type=Path, metavar="FOLDER", help="never come to an end; the log goes there")
    asked = parser.parse_args()
    storage = open_storage(sa.make_url(asked.url), application_name="trivial")
    claims = claims_of(storage, asked.study_id)
    sampler = SamplerSection(name=asked.sampler)
    work = Trivial(claims, storage.optuna, asked.hang, hangs=asked.hang is not None, sampler=sampler)
    Worker(claims, work, threading.Event(), tolerance=Tolerance(first_s=1.0)).run()


def _fits(work: Trivial) -> Work:
    return work


if __name__ == "__main__":
    main()
