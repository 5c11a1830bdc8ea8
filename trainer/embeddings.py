"""
A folder of embeddings: a vector of a frozen backbone for each image, which a network then sees beside its own features.

`features.npy` (N, D) float32, `metadata.csv` (image, accession, path) in the same order, and `embeddings.json`, the record,
written last. To be attached, the first two are enough: other programs write them too.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from trainer.config import PreprocessingConfig, Strict
from trainer.data.records import Dataset, ImageRecord
from trainer.errors import InputError
from trainer.files import write_text, written_whole
from trainer.records import Resolution

FEATURES = "features.npy"
METADATA = "metadata.csv"
RECORD = "embeddings.json"

_NUMBERS = "fiu"  # kinds of dtype that float32 can stand for


class Origin(Strict):
    """What the vectors are of. Device and threads change their last bits only."""

    arch: str
    backbone_sha256: str
    """Over the names and values of the backbone's tensors: a weights file may change under its name."""
    preprocessing: PreprocessingConfig
    data_hash: str


class EmbeddingRecord(Strict):
    """The content of `embeddings.json`: what the files beside it are, and the command that makes them again."""

    origin: Origin
    weights: str
    """As they were asked for."""
    n_images: int
    n_features: int
    features_sha256: str
    """Of the file."""
    metadata_sha256: str
    """Of the file."""
    rejected: dict[str, int]
    """Images and labels that were not used, by code."""
    resolution: Resolution
    git_commit: str | None
    git_dirty: bool | None
    versions: dict[str, str]
    command: str
    """Does the run again."""
    started_at: datetime
    finished_at: datetime


def find(folder: Path, origin: Origin) -> EmbeddingRecord | None:
    """
    Return the record of the embeddings in *folder*, which are those of *origin* and whole; None where there is no record.

    Raises:
        InputError: they are others, or damaged.
    """
    record = _read_record(folder)
    if record is None:
        return None
    others = [name for name, value in origin if getattr(record.origin, name) != value]
    if others:
        raise InputError(
            f"{folder}: holds other embeddings, of {record.origin.arch} with weights {record.weights} "
            f"(other {', '.join(others)}); name another folder"
        )
    _check_recorded(folder, record)
    return record


def _read_record(folder: Path) -> EmbeddingRecord | None:
    """Return the record in *folder*; None where there is none. Raises InputError."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return EmbeddingRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{folder}: its {RECORD} is not one of this version; name another folder") from error


def _check_recorded(folder: Path, record: EmbeddingRecord) -> None:
    """Accept the files in *folder* if they are those of their *record*. Raises InputError."""
    for name, expected in ((FEATURES, record.features_sha256), (METADATA, record.metadata_sha256)):
        if not (folder / name).is_file() or sha256((folder / name).read_bytes()) != expected:
            raise InputError(f"{folder}: its {name} is not the one that {RECORD} records; name another folder")


def check_free(path: Path, content: bytes) -> None:
    """
    Accept *path* for *content* if nothing is there, or just that content: an interruption left it.

    Raises:
        InputError: other content would be lost.
    """
    if path.exists() and (not path.is_file() or path.read_bytes() != content):
        raise InputError(f"{path.parent}: holds another {path.name}; name another folder")


def write(folder: Path, features: bytes, metadata: bytes, record: EmbeddingRecord) -> None:
    """Write the three files of *record*, each whole or not at all, and the record last."""
    for name, content in ((METADATA, metadata), (FEATURES, features)):
        with written_whole(folder / name) as temporary:
            temporary.write_bytes(content)
    write_text(folder / RECORD, record.model_dump_json(indent=2) + "\n")


def to_npy(vectors: NDArray[np.float32]) -> bytes:
    """Return the content of `features.npy`."""
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    return buffer.getvalue()


def to_metadata(records: Sequence[ImageRecord], dicom_root: Path | None) -> bytes:
    """Return the content of `metadata.csv`; without a root the paths are the images' names, as under pseudonyms."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["image", "accession", "path"])
    writer.writerows(
        [each.path, each.accession, each.path if dicom_root is None else str(dicom_root / each.path)]
        for each in records
    )
    return buffer.getvalue().encode()


def sha256(content: bytes) -> str:
    """Return the hash of a file's content, in hex."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class _Row:
    line: int
    """In the file, from 1."""
    image: str
    """Empty where the vector is not of one image."""
    accession: str


@dataclass(frozen=True)
class Embeddings:
    """What a folder holds."""

    folder: Path
    vectors: NDArray[np.float32]
    """(N, D), finite."""
    rows: list[_Row]
    """N of them: whose the vectors are."""

    @property
    def n_features(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    def attach(self, dataset: Dataset) -> Dataset:
        """
        Return *dataset* with these vectors as its features.

        An image gets the vector of its own path; else that of its accession number, if this has one vector only, and it is of
        no other image here.

        Raises:
            InputError: an image has no vector.
        """
        features = self.vectors[_match(dataset.records, self.rows, self.folder)]
        return dataclasses.replace(dataset, features=features, features_hash=_hash(features))


def read_embeddings(folder: Path) -> Embeddings:
    """
    Return the vectors in *folder*, and whose they are.

    Raises:
        InputError: the files are not what they must be, or not those that the record beside them is of.
    """
    vectors = _read_vectors(folder / FEATURES)
    rows = _read_rows(folder / METADATA)
    if len(rows) != len(vectors):
        raise InputError(
            f"{folder / METADATA}: {len(rows)} rows, expected {len(vectors)}: one for each row of {FEATURES}"
        )
    record = _read_record(folder)
    if record is not None:
        _check_recorded(folder, record)
    return Embeddings(folder, vectors, rows)


def _hash(features: NDArray[np.float32]) -> str:
    """Return the sha256, in hex, over shape and numbers of *features*."""
    digest = hashlib.sha256(str(features.shape).encode())
    digest.update(features.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _match(records: Sequence[ImageRecord], rows: Sequence[_Row], folder: Path) -> list[int]:
    """Return for each of *records* the index of its row."""
    row_of_image = {row.image: index for index, row in enumerate(rows)}
    images = {record.path for record in records}
    of_accession: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        of_accession[row.accession].append(index)
    # Of several, one would be a guess, also where the others are of images that are gone; another image's is never lent out.
    only = {
        accession: indices[0]
        for accession, indices in of_accession.items()
        if len(indices) == 1 and rows[indices[0]].image not in images
    }
    places = [row_of_image.get(record.path, only.get(record.accession)) for record in records]
    missing = [record for record, place in zip(records, places, strict=True) if place is None]
    if missing:
        first = missing[0]
        n_rows = len(of_accession.get(first.accession, ()))
        raise InputError(
            f"{folder}: no vector for image {first.path}: it is not in {METADATA}, which has {n_rows or 'none'} of its accession "
            f"number, expected just one, of no other image; {len(missing)} of {len(records)} have none"
        )
    return [place for place in places if place is not None]


def _read_vectors(path: Path) -> NDArray[np.float32]:
    """Return the (N, D) finite vectors in *path*, whatever type of number they have there."""
    try:
        # Mapped: a header that promises more than there is costs no memory. No pickle is read, and no archive opened.
        stored = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}, expected an array (N, D) float32") from error
    except (ValueError, TypeError, OverflowError, SyntaxError, TokenError) as error:  # NumPy's, for a senseless header
        raise InputError(f"{path}: cannot be read ({error}), expected an array (N, D) float32") from error
    if stored.ndim != 2 or stored.size == 0 or stored.dtype.kind not in _NUMBERS:  # noqa: PLR2004 - images and features
        raise InputError(f"{path}: {stored.dtype} {stored.shape}, expected an array (N, D) float32")
    with np.errstate(over="ignore"):  # what is too large is infinite, and said to be
        vectors = np.array(stored, dtype=np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise InputError(f"{path}: row {int(finite.argmin())}, from 0, expected finite float32 numbers only")
    return vectors


def _read_rows(path: Path) -> list[_Row]:
    """Return the rows of *path*; no two are of one image."""
    try:
        reader = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        columns = [name.strip() for name in next(reader, [])]
        if any(columns.count(name) != 1 for name in ("image", "accession")):
            found = ", ".join(columns)[:200] or "none"
            raise InputError(f"{path}: line 1: expected a column image and a column accession, found {found}")
        image, accession = columns.index("image"), columns.index("accession")
        rows = [_to_row(path, reader.line_num, cells, image, accession) for cells in reader if cells]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}, expected whose the vectors are") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: {error}, expected a table in UTF-8, separated by commas") from error
    line_of: dict[str, int] = {}
    for row in rows:
        first = line_of.setdefault(row.image, row.line)
        if row.image and first != row.line:
            raise InputError(
                f"{path}: line {row.line}: image {row.image!r} is in line {first} too, expected one vector each"
            )
    return rows


def _to_row(path: Path, line: int, cells: list[str], image: int, accession: int) -> _Row:
    """Return one row of the table; accession numbers are text, with their zeros."""
    if len(cells) <= max(image, accession):
        raise InputError(f"{path}: line {line}: {len(cells)} fields, expected an image and an accession number")
    return _Row(line, cells[image], cells[accession].strip())
