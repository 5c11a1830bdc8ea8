"""`optuna_trial.json` and `study.json`: what is left of a trial and of a study when the database is gone."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

TrialStateName = Literal["running", "waiting", "complete", "pruned", "fail"]


class Record(BaseModel):
    """Something that is written down once and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class File(Record):
    """A file, with what proves that it is the same."""

    name: str
    """Relative to the trial's folder, POSIX."""
    bytes: int
    sha256: str


class Attempt(Record):
    """One attempt at a trial."""

    number: int
    """From 0."""
    token: str
    worker: str
    device: str
    gpus: float
    """The share of a GPU that it held; 0 on the processor."""
    environment: dict[str, Any]
    """Versions and commit that it ran with."""
    start: datetime
    end: datetime | None
    ending: str | None
    """complete, pruned, fail, stopped, hung or lost; None while it runs."""
    epochs: dict[int, list[int]]
    """The epochs that it finished, by fold."""


class TrialRecord(Record):
    """The content of `optuna_trial.json`. A number that does not exist is null."""

    schema_version: Literal[1] = 1
    study: str
    number: int
    root_number: int
    """The number of the first attempt. Attempts share one number here, so it is the trial's own."""
    attempts: list[Attempt]
    state: TrialStateName
    reason: str | None
    """Why it was pruned or failed."""
    value: float | None
    params: dict[str, Any]
    distributions: dict[str, Any]
    fold_scores: list[float | None]
    """One a fold of the study, null where the fold was not trained."""
    n_folds_done: int
    pruned_at: int | None
    """The fold after which the trial was given up."""
    config: dict[str, Any]
    seeds: dict[str, Any]
    threads: int | None
    resolution: dict[str, Any] | None
    """What decided the bits beside configuration, data, folds and seeds."""
    versions: dict[str, str]
    git_commit: str | None
    data_hash: str
    embeddings_hash: str | None = None
    """Of another backbone's vectors, where the trial was trained with any."""
    folds_hash: str
    device: str | None
    gpu_seconds: float | None
    """Seconds that attempts held a GPU, all attempts together, a shared one by their share; 0 on the CPU."""
    started_at: datetime | None
    finished_at: datetime | None
    artifacts: list[File]


class StudyRecord(Record):
    """The content of `study.json`."""

    schema_version: Literal[1] = 1
    study: str
    resolved: dict[str, Any]
    """The study file with every default filled in."""
    data_hash: str
    folds_hash: str
    images: int
    patients: int
    class_names: list[str]
    rejected: dict[str, int]
    """Images and labels that are not used, by code."""
    versions: dict[str, str]
    git_commit: str | None
    created_at: datetime


def describe_files(folder: Path, *, prefix: str = "") -> tuple[File, ...]:
    """Return every file below *folder*, hashed, in order of name, as it will be called below *prefix*."""
    return tuple(
        describe_file(path, f"{prefix}{path.relative_to(folder).as_posix()}")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def describe_file(path: Path, name: str) -> File:
    """Return the file at *path*, hashed, under *name*."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(name=name, bytes=path.stat().st_size, sha256=digest)
