"""
The decoded data set: every image decoded once, whatever the number of workers, trials, folds and epochs.

`cache/<key>/` holds `images.npy` (N, H, W) uint8, `index.csv`, `report.csv` and `dataset.json`, and never a pickle. The key
is made of contents, so that changed data never meet an old cache. It is built in a folder of its own under a lock that a
dead process does not keep, and appears by one rename, whole.

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
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from trainer.config import PreprocessingConfig
from trainer.data import cache_files
from trainer.data.archive import Inspected, find_candidates, inspect, rejection_of
from trainer.data.cache_files import About, ImageWriter, pixel_versions
from trainer.data.decoder_pool import DecoderPool
from trainer.data.labels import Labels, read_labels
from trainer.data.memory_images import MemoryWriter
from trainer.data.on_demand import OnDemand
from trainer.data.preprocess import PREPROCESSING_VERSION
from trainer.data.records import Dataset, ImageRecord, Rejection, Unkept
from trainer.errors import DataError, OtherDataError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told of files done and all files: those of the building process only, when they are decoded."""

_SCHEMA_VERSION = 1
"""Part of the key: of what is hashed and of the files in a cache."""


@dataclass(frozen=True)
class _Found:
    """What there is to decode, and what is known before it is decoded."""

    root: Path
    about: About
    usable: Sequence[Inspected]
    rejections: Sequence[Rejection]
    progress: Progress | None


class _Sink(Protocol):
    """Where decoded images go."""

    def append(self, image: NDArray[np.uint8]) -> None:
        """Take *image*, (side, side), as the next row."""
        ...


class _Nowhere:
    """Where images go that were decoded to learn that they can be."""

    def append(self, image: NDArray[np.uint8]) -> None:
        """Forget *image*."""


def open_dataset(
    csv: Path,
    dicom_root: Path,
    preprocessing: PreprocessingConfig,
    cache_dir: Path,
    *,
    max_rejected: float = 0.05,
    cache_mode: Literal["disk", "memory", "none"] = "disk",
    expected_hash: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """
    Return the decoded data set, decoding it first if no other process did or what it decoded was not to be kept.

    Args:
        csv: Label file.
        dicom_root: Folder with a folder of images for each accession number.
        preprocessing: From stored pixels to the decoded image.
        cache_dir: Where decoded data sets are kept; with ``disk`` alone.
        max_rejected: Largest share, 0..1, of the files with a label that may be broken.
        cache_mode: What is kept: ``disk`` an array for all processes, ``memory`` one for this process, ``none`` nothing, so
            that each image is decoded again whenever it is read.
        expected_hash: Of the data that these must be; None accepts any.
        progress: Called while this process decodes.

    Raises:
        OtherDataError: they are not the expected ones; nothing is decoded.
        InputError: the label file or the root is not what it must be.
        DataError: too many files are broken, a class has no image left, or the decoded images cannot be kept.
    """
    labels = read_labels(csv)
    candidates, rejections = find_candidates(dicom_root, labels)
    if not candidates:
        raise DataError(f"{dicom_root}: no file in a folder that is named like an accession number of {csv}")
    with DecoderPool(preprocessing, len(candidates)) as pool:
        inspected = inspect(dicom_root, candidates, pool)
    rejections += [entry.rejection for entry in inspected if entry.rejection is not None]
    usable = [entry for entry in inspected if entry.rejection is None]
    _check_broken(rejections, len(candidates), max_rejected)
    _check_classes({entry.candidate.label for entry in usable}, labels, csv)
    about = About(
        data_hash=_hash(inspected, labels.class_names, preprocessing),
        class_names=labels.class_names,
        preprocessing=preprocessing,
        versions=pixel_versions(),
    )
    if expected_hash is not None and expected_hash != about.data_hash:
        raise OtherDataError(expected_hash, about.data_hash)
    found = _Found(dicom_root, about, usable, rejections, progress)
    dataset = _with_rejections(_decoded(found, cache_dir, cache_mode), usable, rejections)
    _check_broken(dataset.rejections, len(candidates), max_rejected)
    _check_classes({record.label for record in dataset.records}, labels, csv)
    return dataset


def _hash(inspected: Iterable[Inspected], class_names: Sequence[str], preprocessing: PreprocessingConfig) -> str:
    """Return the sha256, in hex, over everything that decides the data set: not over places or times."""
    content = {
        "schema": _SCHEMA_VERSION,
        "preprocessing_version": PREPROCESSING_VERSION,
        "preprocessing": preprocessing.model_dump(),
        "class_names": list(class_names),
        "files": sorted(
            [entry.candidate.path, entry.sha256 or "", entry.candidate.label, entry.patient] for entry in inspected
        ),
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _decoded(found: _Found, cache_dir: Path, cache_mode: Literal["disk", "memory", "none"]) -> Dataset:
    """Return what was *found*, decoded, and kept as *cache_mode* says."""
    if cache_mode == "disk":
        return _on_disk(found, cache_dir / found.about.data_hash[:32])
    return _in_memory(found) if cache_mode == "memory" else _on_demand(found)


def _on_disk(found: _Found, folder: Path) -> Dataset:
    """Return the data set in *folder*, which is built unless it is there."""
    try:
        _ensure_built(folder, found)
    except OSError as error:
        raise DataError(f"{folder}: the decoded images cannot be kept there: {error.strerror or error}") from error
    return cache_files.open_folder(folder)


def _in_memory(found: _Found) -> Dataset:
    """Return the data set in an array of this process's own."""
    logger.info("decoding %d images into memory", len(found.usable), extra={"action": "decoding"})
    try:
        with MemoryWriter(found.about.preprocessing.img_size) as writer:
            records, refused = _decode(found, writer)
            images = writer.images()
    except OSError as error:
        raise DataError(f"the decoded images cannot be kept in memory: {error.strerror or error}") from error
    return _dataset(found, images, records, refused)


def _on_demand(found: _Found) -> Dataset:
    """Return the data set without an array; each file is decoded once, to know which of them can be used."""
    logger.info("decoding %d images to check them", len(found.usable), extra={"action": "decoding"})
    records, refused = _decode(found, _Nowhere())
    paths = tuple(record.path for record in records)
    images = OnDemand(found.root.absolute(), paths, found.about.preprocessing)
    return _dataset(found, images, records, refused)


def _dataset(
    found: _Found, images: NDArray[np.uint8] | Unkept, records: Iterable[ImageRecord], refused: Iterable[Rejection]
) -> Dataset:
    return Dataset(images, tuple(records), found.about.class_names, tuple(refused), found.about.data_hash)


def _ensure_built(folder: Path, found: _Found) -> None:
    """Build *folder* unless it is there, or appears while another process builds it."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        # Whoever built here before has died: the lock is ours.
        for left in folder.parent.glob(f"{folder.name}.building-*"):
            shutil.rmtree(left)
        if folder.is_dir():
            return
        building = folder.with_name(f"{folder.name}.building-{os.getpid()}")
        building.mkdir()
        logger.info("decoding %d images into %s", len(found.usable), folder, extra={"action": "decoding"})
        try:
            _build(building, found)
            building.rename(folder)
            _sync_folder(folder.parent)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _build(folder: Path, found: _Found) -> None:
    """Decode what was *found* into *folder*, one row an accepted image."""
    with ImageWriter(cache_files.images_path(folder), found.about.preprocessing.img_size) as writer:
        records, refused = _decode(found, writer)
    cache_files.write_about(folder, found.about, records, [*found.rejections, *refused])
    _sync_folder(folder)


def _decode(found: _Found, sink: _Sink) -> tuple[list[ImageRecord], list[Rejection]]:
    """
    Decode the usable files in their order, give *sink* each image, and return the records of those and the others' rejections.

    Raises:
        DataError: not one can be decoded.
    """
    records: list[ImageRecord] = []
    refused: list[Rejection] = []
    paths = (found.root / entry.candidate.path for entry in found.usable)
    with DecoderPool(found.about.preprocessing, len(found.usable)) as pool:
        for entry, (reply, image) in zip(found.usable, pool.answers("decode", paths), strict=True):
            rejection = rejection_of(entry.candidate.path, reply)
            if image is not None:
                sink.append(image)
                records.append(_record(entry))
            elif rejection is not None:
                refused.append(rejection)
            if found.progress is not None:
                found.progress(len(records) + len(refused), len(found.usable))
    if not records:
        raise DataError(
            f"{found.root}: none of {len(found.usable)} files can be decoded; the first: {refused[0].reason}"
        )
    return records, refused


def _record(entry: Inspected) -> ImageRecord:
    """Return the record of an accepted image; its bytes could be read, so it has a hash."""
    return ImageRecord(
        path=entry.candidate.path,
        sha256=entry.sha256 or "",
        accession=entry.candidate.accession,
        patient=entry.patient,
        label=entry.candidate.label,
        view=entry.view,
        laterality=entry.laterality,
    )


def _sync_folder(folder: Path) -> None:
    """Put the names in *folder* on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _with_rejections(dataset: Dataset, usable: Iterable[Inspected], rejections: Sequence[Rejection]) -> Dataset:
    """
    Return *dataset* with what was left out here: *rejections*, and of the cache's what its builder's decoders refused.

    Files without a label are not part of the hash, so another copy of the archive may have others of them.
    """
    usable_paths = {entry.candidate.path for entry in usable}
    refused = [rejection for rejection in dataset.rejections if rejection.path in usable_paths]
    merged = sorted([*rejections, *refused], key=lambda rejection: (rejection.path, rejection.code))
    return dataclasses.replace(dataset, rejections=tuple(merged))


def _check_broken(rejections: Iterable[Rejection], files: int, max_rejected: float) -> None:
    """Raise DataError if more than the share *max_rejected* of the *files* with a label are broken."""
    counts = Counter(rejection.code.value for rejection in rejections if rejection.code.broken)
    broken = counts.total()
    if broken > max_rejected * files:
        by_code = ", ".join(f"{code} {count}" for code, count in sorted(counts.items()))
        raise DataError(f"{broken} of {files} images are broken ({by_code}): more than max_rejected {max_rejected:g}")


def _check_classes(present: set[int], labels: Labels, csv: Path) -> None:
    """Raise DataError if a class of the label file has no image."""
    for label, name in enumerate(labels.class_names):
        if label not in present:
            accessions = sum(value == label for value in labels.label_of.values())
            raise DataError(f"{csv}: class {name!r} has {accessions} accession numbers and no usable image")
