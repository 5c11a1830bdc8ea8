"""`run.json`: what a run by hand was begun with, so that it can be continued to the bit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from trainer.cli import checked, flag
from trainer.config import CHANGES_NO_NUMBER, RunConfig, Strict
from trainer.data.records import Dataset
from trainer.errors import InputError
from trainer.files import write_text
from trainer.provenance import commit, versions
from trainer.records import Resolution

logger = logging.getLogger(__name__)

LOCK = ".lock"
_NAME = "run.json"
_PLACES = frozenset({"csv", "dicom_root", "cache_dir", "embeddings_dir", "outdir", "device", "max_rejected"})
"""Fields in which a resumed run may differ: hashes and the resolution say whether what is found there is the same."""


class Run(Strict):
    """A run by hand, settled before its first step."""

    config: RunConfig
    """With what was chosen for it, such as the batch size, and paths that are absolute."""
    resolution: Resolution
    data_hash: str
    embeddings_hash: str | None
    """Of another backbone's vectors, where there are any."""
    folds_hash: str
    git_commit: str | None
    git_dirty: bool | None
    versions: dict[str, str]
    started_at: datetime

    def write(self, folder: Path) -> None:
        """Write the record into *folder*."""
        write_text(folder / _NAME, self.model_dump_json(indent=2) + "\n")


def read_run(folder: Path) -> Run:
    """
    Return the run that was begun in *folder*.

    Raises:
        InputError: there is none, or its record is broken.
    """
    try:
        content = (folder / _NAME).read_bytes()
    except OSError as error:
        raise InputError(f"--resume {folder}: no run was begun there (it has no {_NAME})") from error
    try:
        return Run.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"--resume {folder}: its {_NAME} is not one of this version of the program") from error


def resumed_config(folder: Path, given: Mapping[str, Any]) -> RunConfig:
    """
    Return the configuration of the run in *folder*, with what was *given* on the command line laid over it.

    Raises:
        InputError: there is no run, or a flag has no valid value.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    return checked(RunConfig, {**read_run(folder).config.model_dump(), **asked}).with_absolute_paths()


def check_config(run: Run, folder: Path, config: RunConfig) -> None:
    """
    Accept *config* if it is that of the *run* in *folder*, perhaps in other places.

    Raises:
        InputError: with the flag that would make it another run.
    """
    settled = {"threads": run.resolution.threads, "micro_batch": run.resolution.micro_batch}
    for name, before in run.config:
        now = getattr(config, name)
        is_free = name in _PLACES or name in CHANGES_NO_NUMBER
        is_same = now in (before, settled.get(name, before))
        is_here = name == "cv_outdir" and now is not None and now.resolve() == folder.resolve()
        if not (is_free or is_same or is_here):
            raise InputError(f"{flag(name)}: the run in {folder} has {before}, and a resumed run keeps it, got {now}")


def check_device(run: Run, folder: Path, device_kind: str) -> None:
    """Accept a device of *device_kind* for the *run* in *folder*. Raises InputError."""
    _check_equal(folder, "device", run.resolution.device_kind, device_kind)


def check_data(run: Run, folder: Path, dataset: Dataset, folds_hash: str) -> None:
    """
    Accept what was found for the *run* in *folder* if it is what the run was begun with.

    Raises:
        InputError: the first thing that differs.
    """
    _check_equal(folder, "data", run.data_hash, dataset.data_hash)
    _check_equal(folder, "embeddings", run.embeddings_hash, dataset.features_hash)
    _check_equal(folder, "folds", run.folds_hash, folds_hash)


def _check_equal(folder: Path, name: str, begun: str | None, found: str | None) -> None:
    if begun != found:
        raise InputError(f"--resume {folder}: was begun with {name} {begun or 'none':.40}, here: {found or 'none':.40}")


def warn_of_other_versions(run: Run) -> None:
    """Say which libraries, and whether the program itself, are others than those that the *run* was begun with."""
    before = {**run.versions, "commit": run.git_commit}
    now = {**versions(), "commit": commit().git_commit}
    others = [f"{name} {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
    if others:
        logger.warning("begun with other versions, the last bits may differ: %s", ", ".join(others))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """
    Keep other processes from training in *folder* while the block runs; a process that dies keeps nobody out.

    Raises:
        InputError: another process trains there.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{folder}: another process trains in it") from error
    try:
        yield
    finally:
        lock.release()
