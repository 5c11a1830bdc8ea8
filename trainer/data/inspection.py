"""Every candidate's hash and header, and which of them are to be used as far as these tell."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
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
from trainer.errors import DataError

_KEEP_S = 30.0
"""How much work a kill costs at most: to read an archive over a network takes an hour."""


@dataclass(frozen=True)
class Usable:
    """A file that is to be used, as far as its header tells."""

    candidate: Candidate
    stamp: Stamp | None
    """By which it is seen whether it changes before it is decoded."""
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
    known_in: Path | None,
    naming: Naming,
    selection: SelectionConfig,
    progress: Progress | None,
) -> tuple[list[Usable], list[Rejection]]:
    """
    Return which of *candidates* are to be used, in their order, and why the others are not.

    What is learnt of files is kept in *known_in*, if that is given, for the next time.

    Raises:
        DataError: a file changes while it is read.
    """
    # Where the label file names every patient, nobody has to read the PatientID: it only joins.
    is_stated = all(candidate.patient is not None for candidate in candidates)
    known_files = KnownFiles(known_in, root, naming.identity, "stated" if is_stated else "")
    call = _hash_of if is_stated else naming.patient
    usable: list[tuple[Candidate, Stamp | None, Known, Header]] = []
    rejections: list[Rejection] = []
    looked = _look(root, candidates, pool, known_files, call, progress)
    for candidate, (stamp, known) in zip(candidates, looked, strict=True):
        header = known.header
        if header is None:
            rejections.append(Rejection(candidate.name, known.code or Code.UNDECODABLE, known.reason))
        elif (rejection := _why_left_out(candidate, header, selection)) is not None:
            rejections.append(rejection)
        else:
            usable.append((candidate, stamp, known, header))
    belongings = [
        Belonging(candidate.patient, header.patient_id, candidate.accession) for candidate, _, _, header in usable
    ]
    return [
        Usable(
            candidate=candidate,
            stamp=stamp,
            sha256=known.sha256,
            belonging=belonging,
            patient=patient,
            pixels=header.pixels,
            view=_view(candidate, header),
            laterality=candidate.entry.laterality or header.laterality,
            for_processing=header.for_processing,
        )
        for (candidate, stamp, known, header), belonging, patient in zip(
            usable, belongings, group_patients(belongings), strict=True
        )
    ], rejections


def _look(
    root: Path,
    candidates: Sequence[Candidate],
    pool: DecoderPool,
    known_files: KnownFiles,
    call: Callable[[str], str],
    progress: Progress | None,
) -> list[tuple[Stamp | None, Known]]:
    """Return what each candidate's bytes and header say, reading those that are not known yet."""
    found: dict[str, tuple[Stamp | None, Known]] = {}
    unknown: list[tuple[Candidate, Stamp | None]] = []
    for candidate in candidates:
        stamp = _stamp(root, candidate)
        known = None if stamp is None else known_files.get(candidate.name, stamp)
        if known is None:
            unknown.append((candidate, stamp))
        else:
            found[candidate.name] = (stamp, known)
    replies = pool.answers("inspect", ((root / candidate.path, 0) for candidate, _ in unknown))
    kept_at = time.monotonic()
    try:
        for done, ((candidate, stamp), (reply, _)) in enumerate(zip(unknown, replies, strict=True), start=1):
            check_unchanged(root, candidate, stamp)
            learnt = _known(reply, call)
            found[candidate.name] = (stamp, learnt)
            if stamp is not None and learnt.sha256:
                known_files.add(candidate.name, stamp, learnt, reply.read_ns)
            if time.monotonic() > kept_at + _KEEP_S:
                known_files.keep()
                kept_at = time.monotonic()
            if progress is not None:
                progress("reading", done, len(unknown))
    finally:
        known_files.keep()
    return [found[candidate.name] for candidate in candidates]


def check_unchanged(root: Path, candidate: Candidate, stamp: Stamp | None) -> None:
    """Raise DataError if the file of *candidate* has another stamp by now: what was learnt of it may be of two files."""
    if _stamp(root, candidate) != stamp:
        raise DataError(f"{candidate.name}: changed while the archive was read; open it again when nobody writes there")


def _hash_of(patient: str) -> str:
    """Return what tells *patient* from others and says no more."""
    return hashlib.sha256(f"patient:{patient}".encode()).hexdigest()[:16]


def _stamp(root: Path, candidate: Candidate) -> Stamp | None:
    """Return what tells that the file is unchanged, or None: then its decoder says why it cannot be read."""
    try:
        return Stamp.of(f"{root}/{candidate.path}")
    except OSError:
        return None


def _known(reply: Reply, call: Callable[[str], str]) -> Known:
    """Return what a decoder replied, with its patient as *call* calls him."""
    header = reply.header
    if header is not None and header.patient_id is not None:
        header = header.with_patient(call(header.patient_id))
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
