"""
The decoded data set: every image decoded once, whatever the number of workers, trials, folds and epochs.

`cache/<key>/` holds `images.npy` (N, H, W) uint8, `index.csv`, `report.csv` and `dataset.json`, and never a pickle. The key
is made of contents, so that changed data never meet an old cache. It is built in a folder of its own under a lock that a
dead process does not keep, goes on from there after a kill, and appears by one rename, whole.

For those who must not write there are two more modes: the array in this process's memory, and no array at all. Hash, records,
rejections and pixels are the same in all of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from trainer.config import PreprocessingConfig, SelectionConfig
from trainer.data import cache_files
from trainer.data.archive import find_candidates
from trainer.data.building import Building
from trainer.data.cache_files import About, pixel_versions
from trainer.data.decoder_pool import DecoderPool
from trainer.data.decoding import Nowhere, Settled, Sink, decode, settle
from trainer.data.inspection import Usable, inspect
from trainer.data.labels import read_labels
from trainer.data.memory_images import MemoryWriter
from trainer.data.naming import AsTheArchive, Naming
from trainer.data.on_demand import OnDemand
from trainer.data.preprocess import PREPROCESSING_VERSION
from trainer.data.progress import Progress
from trainer.data.records import Dataset, Rejection, Unkept
from trainer.data.usability import (
    UnusableArchiveError,
    check_broken,
    check_classes,
    check_split,
    warn_of_what_is_odd,
)
from trainer.errors import DataError, OtherDataError

logger = logging.getLogger(__name__)

CacheMode = Literal["disk", "memory", "none"]

_SCHEMA_VERSION = 2
"""Part of the key: of what is hashed and of the files in a cache."""
_BUILDING = ".building"
_ABANDONED_S = 7 * 24 * 3600
_SELECTION = SelectionConfig()
_NAMING = AsTheArchive()


@dataclass(frozen=True)
class _Opening:
    """What is to be decoded, and what is known before it is."""

    root: Path
    about: About
    usable: Sequence[Usable]
    rejections: Sequence[Rejection]
    """Of the files that are not decoded, and of labels without an image."""
    pool: DecoderPool
    progress: Progress | None


def open_dataset(
    csv: Path,
    dicom_root: Path,
    preprocessing: PreprocessingConfig,
    cache_dir: Path,
    *,
    selection: SelectionConfig = _SELECTION,
    naming: Naming = _NAMING,
    cache_mode: CacheMode = "disk",
    expected_hash: str | None = None,
    progress: Progress | None = None,
    despite_broken: bool = False,
) -> Dataset:
    """
    Return the decoded data set, decoding it first if no other process did or what it decoded was not to be kept.

    Args:
        csv: Label file.
        dicom_root: Folder of the images.
        preprocessing: From stored pixels to the decoded image.
        cache_dir: Where decoded data sets are kept; with ``disk`` alone.
        selection: How the label file is read, and which images are used.
        naming: What patients, accession numbers and images are called in all that is returned.
        cache_mode: What is kept: ``disk`` an array for all processes, ``memory`` one for this process, ``none`` nothing, so
            that each image is decoded again whenever it is read.
        expected_hash: Of the data that these must be; None accepts any.
        progress: Called while this process works.
        despite_broken: Decode what is there before too many broken files, or a class without images, are an error, to
            report on all of it.

    Raises:
        OtherDataError: they are not the expected ones; nothing is decoded.
        InputError: the label file or the root is not what it must be.
        UnusableArchiveError: too many files are broken, or a class has no image left.
        DataError: the decoded images cannot be kept.
    """
    labels = read_labels(csv, selection)
    check_split(labels, csv, selection)
    candidates, rejections = find_candidates(dicom_root, labels, naming, published_split=selection.published_split)
    if not candidates:
        raise UnusableArchiveError(f"{dicom_root}: no file in it has a usable label in {csv}", rejections)
    known_in = cache_dir if cache_mode == "disk" else None
    with DecoderPool(preprocessing, len(candidates)) as pool:
        usable, left_out = inspect(dicom_root, candidates, pool, known_in, naming, selection, progress)
        rejections += left_out
        if not despite_broken:
            check_broken(rejections, len(candidates), selection)
            check_classes({entry.candidate.label for entry in usable}, labels, csv, rejections)
        about = About(
            data_hash=_hash(usable, labels.class_names, preprocessing),
            class_names=labels.class_names,
            preprocessing=preprocessing,
            versions=pixel_versions(),
        )
        if expected_hash is not None and expected_hash != about.data_hash:
            raise OtherDataError(expected_hash, about.data_hash)
        opening = _Opening(dicom_root, about, usable, rejections, pool, progress)
        dataset = _decoded(opening, cache_dir, cache_mode)
    check_broken(dataset.rejections, len(candidates), selection, dataset)
    check_classes({record.label for record in dataset.records}, labels, csv, dataset.rejections, dataset)
    warn_of_what_is_odd(usable, labels)
    return dataset


def _hash(usable: Iterable[Usable], class_names: Sequence[str], preprocessing: PreprocessingConfig) -> str:
    """Return the sha256, in hex, over everything that decides the data set: not over places or times."""
    content = {
        "schema": _SCHEMA_VERSION,
        "preprocessing_version": PREPROCESSING_VERSION,
        "preprocessing": preprocessing.model_dump(),
        "class_names": list(class_names),
        "files": [
            [
                entry.candidate.name,
                entry.sha256,
                entry.candidate.label,
                entry.candidate.accession,
                entry.patient,
                entry.view or "",
                entry.laterality or "",
                entry.candidate.split or "",
            ]
            for entry in usable
        ],
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _decoded(opening: _Opening, cache_dir: Path, cache_mode: CacheMode) -> Dataset:
    """Return what is to be decoded, kept as *cache_mode* says."""
    if cache_mode == "disk":
        return _on_disk(opening, cache_dir / opening.about.data_hash[:32])
    return _in_memory(opening) if cache_mode == "memory" else _on_demand(opening)


def _on_disk(opening: _Opening, folder: Path) -> Dataset:
    """Return the data set in *folder*, which is built unless it is there."""
    try:
        _ensure_built(folder, opening)
    except OSError as error:
        raise DataError(f"{folder}: the decoded images cannot be kept there: {error.strerror or error}") from error
    dataset = cache_files.open_folder(folder)
    _check_index(dataset, opening, folder)
    # Files that were never decoded are not part of the hash: another copy of the archive may have others of them.
    names = {entry.candidate.name for entry in opening.usable}
    refused = [rejection for rejection in dataset.rejections if rejection.path in names]
    return dataclasses.replace(dataset, rejections=_sorted([*opening.rejections, *refused]))


def _in_memory(opening: _Opening) -> Dataset:
    """Return the data set in an array of this process's own."""
    logger.info("decoding %d images into memory", len(opening.usable), extra={"action": "decoding"})
    try:
        with MemoryWriter(opening.about.preprocessing.img_size) as writer:
            settled = _decode_into(writer, opening)
            images = writer.images(settled.rows)
    except OSError as error:
        raise DataError(f"the decoded images cannot be kept in memory: {error.strerror or error}") from error
    return _dataset(opening, images, settled)


def _on_demand(opening: _Opening) -> Dataset:
    """Return the data set without an array; each file is decoded once, to know which of them can be used."""
    logger.info("decoding %d images to check them", len(opening.usable), extra={"action": "decoding"})
    settled = _decode_into(Nowhere(), opening)
    path_of = {entry.candidate.name: entry.candidate.path for entry in opening.usable}
    paths = tuple(path_of[record.path] for record in settled.records)
    names = tuple(record.path for record in settled.records)
    images = OnDemand(opening.root.absolute(), paths, opening.about.preprocessing, names if names != paths else None)
    return _dataset(opening, images, settled)


def _decode_into(sink: Sink, opening: _Opening) -> Settled:
    """Decode what is to be decoded into *sink*, and return which images are used: one at least."""
    outcomes = decode(opening.root, opening.usable, opening.pool, sink, opening.progress)
    settled = settle(opening.usable, outcomes)
    if not settled.rows:
        raise UnusableArchiveError(
            f"{opening.root}: none of {len(opening.usable)} images can be used; "
            f"{f'the first: {settled.rejections[0].reason}' if settled.rejections else 'all are left out'}",
            _sorted([*opening.rejections, *settled.rejections]),
        )
    return settled


def _dataset(opening: _Opening, images: NDArray[np.uint8] | Unkept, settled: Settled) -> Dataset:
    rejections = _sorted([*opening.rejections, *settled.rejections])
    return Dataset(images, settled.records, opening.about.class_names, rejections, opening.about.data_hash)


def _ensure_built(folder: Path, opening: _Opening) -> None:
    """Build *folder* unless it is there, or appears while another process builds it."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():
            return
        _remove_abandoned(folder.parent)
        building = folder.with_name(folder.name + _BUILDING)
        logger.info("decoding %d images into %s", len(opening.usable), folder, extra={"action": "decoding"})
        try:
            _build(building, opening)
        except (OSError, DataError):  # what a kill leaves is taken up; what cannot be finished is not left lying about
            shutil.rmtree(building, ignore_errors=True)
            raise
        building.rename(folder)
        _sync_folder(folder.parent)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock at *path*; say so if that has to wait for whoever builds there."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that decodes these images", extra={"action": "decoding_elsewhere"})
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(folder: Path, opening: _Opening) -> None:
    """Decode into *folder*, one row an image that is used, going on where another process was killed."""
    with Building(folder, opening.about) as building:
        if building.done:
            logger.info("%d of them are decoded already", len(building.done), extra={"action": "decoding_resumed"})
        settled = _decode_into(building, opening)
        building.finish(settled.rows)
    rejections = _sorted([*opening.rejections, *settled.rejections])
    cache_files.write_about(folder, opening.about, settled.records, rejections)
    building.close_journal()
    _sync_folder(folder)


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed processes left in *parent* and nobody has taken up for a week."""
    for left in parent.glob(f"*{_BUILDING}"):
        try:
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                with FileLock(left.with_suffix(".lock"), timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
        except (OSError, Timeout):
            continue  # somebody builds there, or it is gone


def _sync_folder(folder: Path) -> None:
    """Put the names in *folder* on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sorted(rejections: Iterable[Rejection]) -> tuple[Rejection, ...]:
    return tuple(sorted(rejections, key=lambda rejection: (rejection.path, rejection.code)))


def _check_index(dataset: Dataset, opening: _Opening, folder: Path) -> None:
    """Raise DataError if the records in *folder* are not of the files that are there: its key says that they are."""
    known = {
        entry.candidate.name: (entry.sha256, entry.candidate.accession, entry.candidate.label, entry.candidate.split)
        for entry in opening.usable
    }
    for record in dataset.records:
        if known.get(record.path) != (record.sha256, record.accession, record.label, record.split):
            raise DataError(
                f"{folder}: damaged: its index is not that of these images; remove it and it is built again"
            )
