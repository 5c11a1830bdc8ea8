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
from trainer.provenance import versions
from trainer.records import Resolution

logger = logging.getLogger(__name__)

_NAME = "run.json"
_PLACES = frozenset({"csv", "dicom_root", "cache_dir", "embeddings_dir", "outdir", "device", "max_rejected"})
"""Fields in which a resumed run may differ: hashes and the resolution say whether what is found there is the same."""


class Run(Strict):
    """A run by hand, settled before its first step."""

    config: RunConfig
    """With what was chosen for it, such as the batch size."""
    resolution: Resolution
    data_hash: str
    embeddings_hash: str | None
    """Of another backbone's vectors, where there are any."""
    folds_hash: str
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
    Return the configuration of the run in *folder*, with the places that were *given* on the command line.

    Raises:
        InputError: a flag that was given would make it another run.
    """
    stored = read_run(folder).config
    asked = {name: value for name, value in given.items() if value is not None}
    config = checked(RunConfig, {**stored.model_dump(), **asked})
    for name in asked.keys() - _PLACES - CHANGES_NO_NUMBER:
        before, now = getattr(stored, name), getattr(config, name)
        if name == "cv_outdir":
            before, now = folder.resolve(), config.cv_outdir and config.cv_outdir.resolve()
        if before != now:
            raise InputError(f"{flag(name)}: the run in {folder} has {before}, and a resumed run keeps it, got {now}")
    return config


def check_same(run: Run, folder: Path, *, device_kind: str, dataset: Dataset, folds_hash: str) -> None:
    """
    Accept what was found for the run in *folder* if it is what the run was begun with; warn of other library versions.

    Raises:
        InputError: the first thing that differs.
    """
    pairs = {
        "device": (run.resolution.device_kind, device_kind),
        "data": (run.data_hash, dataset.data_hash),
        "embeddings": (run.embeddings_hash, dataset.features_hash),
        "folds": (run.folds_hash, folds_hash),
    }
    for name, (begun, found) in pairs.items():
        if begun != found:
            raise InputError(
                f"--resume {folder}: was begun with {name} {begun or 'none':.40}, here: {found or 'none':.40}"
            )
    other = [
        f"{name} {run.versions.get(name)} -> {now}" for name, now in versions().items() if run.versions.get(name) != now
    ]
    if other:
        logger.warning("begun with other versions, the last bits may differ: %s", ", ".join(other))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """
    Keep other processes from training in *folder* while the block runs; a process that dies keeps nobody out.

    Raises:
        InputError: another process trains there.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{folder}: another process trains in it") from error
    try:
        yield
    finally:
        lock.release()
