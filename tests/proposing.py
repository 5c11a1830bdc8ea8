"""The trivial worker with a search's own proposals: `python -m tests.proposing URL STUDY_ID SAMPLER`."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass

import sqlalchemy as sa

from hpo import sampling
from hpo.study_file import SamplerSection, StudyFile
from hpo.worker import Worker
from storage.claims import Claim
from storage.study_storage import StudyStorage, open_storage
from tests.trivial import Trivial, claims_of

FILE = StudyFile.model_validate(
    {
        "study": "s",
        "search": {
            "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
            "arch": {"type": "categorical", "choices": ["efficientnet_b0", "resnet50"]},
            "dropout": {"type": "float", "low": 0.0, "high": 0.5, "when": {"arch": "efficientnet_b0"}},
        },
        "budget": {"trials": 20},
    }
)


@dataclass
class Proposing(Trivial):
    """Takes no time beside that of the sampler."""

    storage: StudyStorage | None = None
    sampler: SamplerSection | None = None

    def propose(self, claim: Claim) -> float:
        """Settle the trial's parameters as a search does, and return one of them."""
        assert self.storage is not None
        assert self.sampler is not None
        params = sampling.settle_parameters(
            self.claims,
            claim,
            self.storage.optuna,
            study_name=FILE.study,
            study_seed=FILE.seed,
            section=self.sampler,
            space=FILE.space(),
        )
        return float(params["lr"])


if __name__ == "__main__":
    url, study_id, name = sys.argv[1:]
    opened = open_storage(sa.make_url(url), application_name="proposing")
    claims = claims_of(opened, int(study_id))
    work = Proposing(claims, storage=opened, sampler=SamplerSection.model_validate({"name": name}))
    Worker(claims, work, threading.Event()).run()
