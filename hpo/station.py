"""Where a worker works: its device, the study's data as decoded here, and its claims."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hpo.search_space import SearchSpace
from hpo.status import worker_name
from hpo.study import DataPlace, Study, open_data, with_embeddings, write_folder
from hpo.study_file import StudyFile
from storage.claims import Claims
from storage.heartbeat import GRACE_S
from storage.patience import Patience
from storage.tree import OutputTree
from trainer.config import PreprocessingConfig, TrainConfig
from trainer.data.folds import Folds, from_csv
from trainer.data.records import Dataset
from trainer.errors import InputError
from trainer.protocols import StopSignal
from trainer.provenance import commit, versions
from trainer.resolve import device_kind, resolve_device
from trainer.weights import load_weights


@dataclass(frozen=True)
class Station:
    """Where a worker works: what it needs for every trial and does not change between them."""

    study: Study
    claims: Claims
    place: DataPlace
    dataset: Dataset
    """The study's data, with the preprocessing of its base configuration."""
    folds: Folds
    device: torch.device
    threads: int | None
    """Processor threads of a step, for trials that this worker begins; None for all cores."""
    _opened: dict[tuple[PreprocessingConfig, Path | None], Dataset] = field(default_factory=dict)
    """The data in other forms, which are opened once: to open is to read every file."""

    def data(self, config: TrainConfig, stop: StopSignal | None = None) -> tuple[Dataset, Folds]:
        """
        Return the data as *config* wants them, preprocessed and with another backbone's vectors, and the study's folds.

        Where they must be decoded first, *stop* is asked all the while, in place of the station's own.

        Raises:
            NotTheStudysEmbeddingsError: The vectors here are others than the study's.
        """
        base, form = self.study.file.train, (config.preprocessing(), config.embeddings_dir)
        if form == (base.preprocessing(), base.embeddings_dir):
            return self.dataset, self.folds
        if form not in self._opened:
            dataset = self.dataset if form[0] == base.preprocessing() else self.place.until(stop).open(form[0])
            self._opened[form] = with_embeddings(self.study.file, dataset, config.embeddings_dir)
        dataset = self._opened[form]
        return dataset, from_csv(self.study.registration.folds_csv, dataset)


def set_up_station(
    study: Study,
    tree: OutputTree,
    *,
    device: str,
    per_gpu: int,
    threads: int | None,
    patience: Patience,
    stop: StopSignal,
    csv: Path | None,
    dicom_root: Path | None,
) -> Station:
    """
    Return where a worker works, of which *per_gpu* share a GPU.

    Raises:
        InputError: There is no such device, or it is none for this study.
        WeightsUnavailableError: Weights that a trial may ask for cannot be had here.
        NotTheStudysDataError: The data here are not the study's.
        StopRequestedError: Asked to stop while they were opened.
    """
    resolved_device = resolve_device(device)
    check_limits(study.file, resolved_device)
    check_weights(study.space)
    place = DataPlace.choose(study.file, tree, csv=csv, dicom_root=dicom_root, stop=stop)
    dataset, folds = open_data(study, place)
    write_folder(study, dataset)
    code = commit()
    claims = Claims(
        engine=study.storage.engine,
        study_id=study.registration.study_id,
        worker=worker_name(os.getpid()),
        device=str(resolved_device),
        device_kind=device_kind(resolved_device),
        grace_s=GRACE_S,
        patience=patience,
        gpus=0.0 if resolved_device.type == "cpu" else 1 / per_gpu,
        environment={"versions": versions(), "git_commit": code.git_commit, "git_dirty": code.git_dirty},
    )
    return Station(study, claims, place, dataset, folds, resolved_device, threads)


def check_limits(file: StudyFile, device: torch.device) -> None:
    """Accept a worker on *device* if it brings the study nearer to an end. Raises InputError."""
    others = file.budget.model_dump(exclude={"gpu_hours"}, exclude_none=True)
    if device.type == "cpu" and not others:
        raise InputError("budget: gpu_hours is the study's only limit, and a worker on the processor never spends any")


def check_weights(space: SearchSpace) -> None:
    """
    Have all weights at hand that a trial may ask for, before a trial is claimed: not every worker shall fail with the same one.

    Raises:
        WeightsUnavailableError: Some cannot be had here.
    """
    for source, arch in sorted({(config.weights, config.arch) for config in space.corners()}):
        load_weights(source, arch)
