"""
The archive as it lies on the disk: which files are candidates, whose they are, and what their headers say.

One folder an accession number below the root, with files of any name and depth in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.decoder import Reply
from trainer.data.decoder_pool import DecoderPool
from trainer.data.labels import Labels
from trainer.data.records import Code, Rejection
from trainer.errors import InputError


@dataclass(frozen=True)
class Candidate:
    """A file that has a label."""

    path: str
    """Relative to the root, POSIX."""
    accession: str
    label: int
    """0..C-1."""


@dataclass(frozen=True)
class Inspected:
    """A candidate, its content's hash, and what its header says."""

    candidate: Candidate
    sha256: str | None
    """None where the file cannot be read."""
    patient: str
    """What groups images; see `group_patients`."""
    view: str | None
    laterality: str | None
    rejection: Rejection | None
    """Why the file is not used, as far as its header tells."""


def check_root(root: Path) -> None:
    """Accept *root* if it is a folder with something in it. Raises InputError."""
    try:
        empty = not any(root.iterdir())
    except OSError as error:
        raise InputError(f"{root}: {error.strerror}, expected the folder of the images") from error
    if empty:
        raise InputError(f"{root}: empty, expected one folder an accession number")


def find_candidates(root: Path, labels: Labels) -> tuple[list[Candidate], list[Rejection]]:
    """
    Return the files below *root* that have a label, sorted by path, and those that are left out before they are read.

    Raises:
        InputError: there is no such folder, or nothing in it.
    """
    check_root(root)
    candidates: list[Candidate] = []
    rejections: list[Rejection] = []
    seen: set[str] = set()
    for path in _walk(root):
        accession = path.partition("/")[0]
        seen.add(accession)
        rejection = _why_left_out(root, path, labels, accession)
        if rejection is None:
            candidates.append(Candidate(path, accession, labels.label_of[accession]))
        else:
            rejections.append(rejection)
    rejections += [_without_image(name, labels) for name in (labels.label_of.keys() | labels.excluded) - seen]
    return sorted(candidates, key=lambda candidate: candidate.path), rejections


def inspect(root: Path, candidates: Sequence[Candidate], pool: DecoderPool) -> list[Inspected]:
    """Return what each candidate's bytes and header say, in their order."""
    replies = [reply for reply, _ in pool.answers("inspect", (root / candidate.path for candidate in candidates))]
    ids = [reply.header.patient_id if reply.header else None for reply in replies]
    patients = group_patients([candidate.accession for candidate in candidates], ids)
    return [
        _inspected(candidate, reply, patient)
        for candidate, reply, patient in zip(candidates, replies, patients, strict=True)
    ]


def group_patients(accessions: Sequence[str], patient_ids: Sequence[str | None]) -> list[str]:
    """
    Return the patient of each image: the first PatientID of its group, else its accession number.

    Images are of one group when they share a PatientID or an accession number: some archives write the view into the
    PatientID ("P_00820_RIGHT_CC"), which would put one patient on both sides of a split.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def find(node: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    for accession, patient_id in zip(accessions, patient_ids, strict=True):
        if patient_id is not None:
            parent[find(("accession", accession))] = find(("patient", patient_id))
    names: dict[tuple[str, str], str] = {}
    for patient_id in sorted({patient_id for patient_id in patient_ids if patient_id is not None}):
        names.setdefault(find(("patient", patient_id)), patient_id)
    return [names.get(find(("accession", accession)), accession) for accession in accessions]


def _walk(root: Path) -> Iterator[str]:
    """Yield every file below *root*, relative and POSIX; links to folders among them, to be judged and not followed."""
    for name, folders, files in os.walk(root):
        folder = Path(name)
        links = [entry for entry in folders if (folder / entry).is_symlink()]
        yield from ((folder / entry).relative_to(root).as_posix() for entry in files + links)


def _why_left_out(root: Path, path: str, labels: Labels, accession: str) -> Rejection | None:
    """Return why the file at *path* is not even read, or None."""
    file = root / path
    shown = path.encode(errors="backslashreplace").decode()
    if shown != path:
        return Rejection(shown, Code.UNDECODABLE, "the file's name is no UTF-8")
    if file.is_symlink() and not file.resolve().is_relative_to(root.resolve()):
        return Rejection(path, Code.OUTSIDE_ROOT, "a link that leads out of the root")
    if accession in labels.excluded:
        return Rejection(path, Code.EXCLUDED_CLASS, "class 5 is left out")
    if accession not in labels.label_of:
        return Rejection(path, Code.NO_LABEL, "its folder's name is no accession number of the label file")
    if not file.is_file() or path == accession:
        return Rejection(path, Code.NOT_IMAGE, "no regular file in the folder of an accession number")
    return None


def _without_image(accession: str, labels: Labels) -> Rejection:
    """Return why the label of *accession* is not used: no folder has its name."""
    if "/" in accession or accession in {".", ".."}:
        return Rejection(accession, Code.OUTSIDE_ROOT, "an accession number that is a path")
    if accession in labels.excluded:
        return Rejection(accession, Code.EXCLUDED_CLASS, "class 5 is left out")
    return Rejection(accession, Code.NO_IMAGE, "no file in a folder of this name")


def _inspected(candidate: Candidate, reply: Reply, patient: str) -> Inspected:
    """Return *candidate* with what a decoder replied about it."""
    return Inspected(
        candidate=candidate,
        sha256=reply.sha256,
        patient=patient,
        view=reply.header.view if reply.header else None,
        laterality=reply.header.laterality if reply.header else None,
        rejection=rejection_of(candidate.path, reply),
    )


def rejection_of(path: str, reply: Reply) -> Rejection | None:
    """Return what *reply* says against the file at *path*, or None."""
    return None if reply.code is None else Rejection(path, reply.code, reply.reason or "")
