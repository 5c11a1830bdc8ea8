"""A claimed trial, settled: what all its attempts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpo.station import Station
from storage.claims import Claim
from storage.tree import AttemptFolder
from trainer.cli import command_line
from trainer.config import RunConfig, TrainConfig
from trainer.resolve import Compute
from trainer.seeds import Seeds


@dataclass(frozen=True)
class Trial:
    """A claimed trial with everything settled that its attempts share."""

    station: Station
    claim: Claim
    params: dict[str, Any]
    config: TrainConfig
    compute: Compute
    folder: AttemptFolder

    @property
    def seeds(self) -> Seeds:
        """The trial's seeds: from the study's, and the number that the trial has for ever."""
        return Seeds(self.station.study.file.seed, self.claim.number)

    def command(self) -> str:
        """Return the command that trains the same by hand: same code, same configuration, same seeds, same folds."""
        run = RunConfig(
            **self.config.model_dump(),
            **self.station.place.selection.model_dump(),
            csv=self.station.place.csv,
            dicom_root=self.station.place.dicom_root,
            device=self.station.device.type,
            threads=self.compute.resolution.threads,
            micro_batch=self.compute.resolution.micro_batch,
            seed=self.seeds.study,
            trial=self.seeds.trial,
            cv_folds=self.station.study.file.cv.folds,
        )
        return command_line("train-density", run)
