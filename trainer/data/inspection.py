"""Every candidate's hash and header, and which of them are to be used as far as these tell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config import SPECIAL_VIEWS, VIEWS, SelectionConfig
from trainer.data.archive import Candidate
from trainer.data.decoder import Reply
from trainer.data.decoder_pool import DecoderPool
from trainer.data.known_files import Known, KnownFiles, Stamp
from trainer.data.mammogram import Header
from trainer.data.naming import Naming
from trainer.data.patients import Belonging, group_patients
from trainer.data.progress import Progress
from trainer.data.records import Code, Rejection

_KEEP_S = 30.0
"""How much work a kill costs at most: to read an archive over a network takes an hour."""


@dataclass(frozen=True)
class Usable:
    """A file that is to be used, as far as its header tells."""

    candidate: Candidate
    sha256: str
    """Of its bytes."""
    belonging: Belonging
    patient: str
    """What groups images; see `group_patients`."""
    pixels: int
    view: str | None
    laterality: str | None
    for_processing: bool


def inspect(
    root: Path,
    candidates: Sequence[Candidate],
    pool: DecoderPool,
    known_files: KnownFiles,
    naming: Naming,
    selection: SelectionConfig,
    progress: Progress | None,
) -> tuple[list[Usable], list[Rejection]]:
    """Return which of *candidates* are to be used, in their order, and why the others are not."""
    usable: list[tuple[Candidate, Known, Header]] = []
    rejections: list[Rejection] = []
    for candidate, known in zip(candidates, _look(root, candidates, pool, known_files, naming, progress), strict=True):
        header = known.header
        if header is None:
            rejections.append(Rejection(candidate.name, known.code or Code.UNDECODABLE, known.reason))
        elif (rejection := _why_left_out(candidate, header, selection)) is not None:
            rejections.append(rejection)
        else:
            usable.append((candidate, known, header))
    belongings = [
        Belonging(candidate.patient, header.patient_id, candidate.accession) for candidate, _, header in usable
    ]
    patients = group_patients(belongings)
    return [
        Usable(
            candidate,
            known.sha256,
            belonging,
            patient,
            header.pixels,
            _view(candidate, header),
            candidate.entry.laterality or header.laterality,
            header.for_processing,
        )
        for (candidate, known, header), belonging, patient in zip(usable, belongings, patients, strict=True)
    ], rejections


def _look(
    root: Path,
    candidates: Sequence[Candidate],
    pool: DecoderPool,
    known_files: KnownFiles,
    naming: Naming,
    progress: Progress | None,
) -> list[Known]:
    """Return what each candidate's bytes and header say, reading those that are not known yet."""
    found: dict[str, tuple[Stamp, Known]] = {}
    unknown: list[tuple[Candidate, Stamp | None]] = []
    for candidate in candidates:
        stamp = _stamp(f"{root}/{candidate.path}")
        known = None if stamp is None else known_files.get(candidate.name, stamp)
        if stamp is None or known is None:
            unknown.append((candidate, stamp))
        else:
            found[candidate.name] = (stamp, known)
    unreadable: dict[str, Known] = {}
    replies = pool.answers("inspect", ((root / candidate.path, 0) for candidate, _ in unknown))
    kept_at = time.monotonic()
    try:
        for done, ((candidate, before), (reply, _)) in enumerate(zip(unknown, replies, strict=True), start=1):
            learnt = _known(reply, naming)
            if before is None or not learnt.sha256:
                unreadable[candidate.name] = learnt
            else:
                found[candidate.name] = (before, learnt)
            if time.monotonic() > kept_at + _KEEP_S:
                known_files.keep(found)
                kept_at = time.monotonic()
            if progress is not None:
                progress("reading", done, len(unknown))
    finally:
        known_files.keep(found)
    return [
        unreadable[candidate.name] if candidate.name in unreadable else found[candidate.name][1]
        for candidate in candidates
    ]


def _stamp(path: str) -> Stamp | None:
    """Return what tells that the file at *path* is unchanged, or None: then its decoder says why it cannot be read."""
    try:
        return Stamp.of(path)
    except OSError:
        return None


def _known(reply: Reply, naming: Naming) -> Known:
    """Return what a decoder replied, with the patient called as in files."""
    header = reply.header
    if header is not None and header.patient_id is not None:
        header = header.with_patient(naming.patient(header.patient_id))
    return Known(reply.sha256 or "", header, reply.code, reply.reason or "")


def _why_left_out(candidate: Candidate, header: Header, selection: SelectionConfig) -> Rejection | None:
    """Return why an image is left out on purpose, or None."""
    if header.for_processing and not selection.include_for_processing:
        return Rejection(candidate.name, Code.FOR_PROCESSING, "raw detector values: another intensity law")
    if selection.views == "all":
        return None
    stated = candidate.entry.view
    special = stated if stated in SPECIAL_VIEWS else header.special
    view = _view(candidate, header)
    if selection.views == "standard":
        wanted = special is None
    else:
        wanted = view in selection.views if special is None else special in selection.views
    if wanted:
        return None
    return Rejection(candidate.name, Code.EXCLUDED_VIEW, f"view {special or view or 'unknown'}")


def _view(candidate: Candidate, header: Header) -> str | None:
    """Return the projection that the label file names, else the header's."""
    return candidate.entry.view if candidate.entry.view in VIEWS else header.view
