"""Usable files -> decoded images: each file once, in their order, and what is to be made of images that are there twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.decoder_pool import BYTES_A_PIXEL, DecoderPool
from trainer.data.inspection import Usable, check_unchanged
from trainer.data.patients import group_patients
from trainer.data.progress import Progress
from trainer.data.records import Code, ImageRecord, Rejection


@dataclass(frozen=True)
class Outcome:
    """What came of decoding a file."""

    fingerprint: str | None
    """Of its stored pixels, where it is decoded."""
    code: Code | None = None
    """Why it is not."""
    reason: str = ""


class Sink(Protocol):
    """Where decoded images go."""

    @property
    def done(self) -> Sequence[Outcome]:
        """What came of the first files already, in an earlier process."""
        ...

    def add(self, outcome: Outcome, image: NDArray[np.uint8] | None) -> None:
        """Take what came of the next file, and its (side, side) image if it is decoded."""
        ...


class Nowhere:
    """Where images go that are decoded to learn that they can be."""

    done: Sequence[Outcome] = ()

    def add(self, outcome: Outcome, image: NDArray[np.uint8] | None) -> None:
        """Forget *image*."""


@dataclass(frozen=True)
class Settled:
    """Which images are used in the end."""

    rows: list[int]
    """Of the images that were decoded, in their order: which are used."""
    records: tuple[ImageRecord, ...]
    """One for each of these."""
    rejections: tuple[Rejection, ...]


def decode(
    root: Path, usable: Sequence[Usable], pool: DecoderPool, sink: Sink, progress: Progress | None
) -> list[Outcome]:
    """
    Decode the *usable* files that *sink* has not yet, give it what comes of each, and return what came of all.

    Raises:
        DataError: a file is not the one any more that was inspected.
    """
    outcomes = list(sink.done)
    rest = usable[len(outcomes) :]
    files = ((root / entry.candidate.path, _bytes_for(entry)) for entry in rest)
    for entry, (reply, image) in zip(rest, pool.answers("decode", files), strict=True):
        check_unchanged(root, entry.candidate, entry.stamp)
        outcome = Outcome(reply.fingerprint, reply.code, reply.reason or "")
        sink.add(outcome, image)
        outcomes.append(outcome)
        if progress is not None:
            progress("decoding", len(outcomes), len(usable))
    return outcomes


def _bytes_for(entry: Usable) -> int:
    """Return how much memory a decoder may need for a file: for what is in it, and for its pixels."""
    return (0 if entry.stamp is None else entry.stamp.size) + BYTES_A_PIXEL * entry.pixels


def settle(usable: Sequence[Usable], outcomes: Sequence[Outcome]) -> Settled:
    """
    Return which images are used: of those with the same pixels the first, if their labels agree, else none of them.

    Images with the same pixels are of one patient in any case, and so is everything else of those whose they are called.
    """
    rejections = [
        Rejection(entry.candidate.name, outcome.code, outcome.reason)
        for entry, outcome in zip(usable, outcomes, strict=True)
        if outcome.code is not None
    ]
    decoded = [place for place, outcome in enumerate(outcomes) if outcome.code is None]
    alike: dict[str | None, list[int]] = defaultdict(list)
    for place in decoded:
        alike[outcomes[place].fingerprint].append(place)
    repeated = [places for places in alike.values() if len(places) > 1]
    refused = {rejection.path: rejection for places in repeated for rejection in _refuse(usable, places)}
    pairs = [(places[0], place) for places in repeated for place in places[1:]]
    patients = (
        group_patients([entry.belonging for entry in usable], pairs) if pairs else [entry.patient for entry in usable]
    )
    kept = [(row, place) for row, place in enumerate(decoded) if usable[place].candidate.name not in refused]
    return Settled(
        rows=[row for row, _ in kept],
        records=tuple(_record(usable[place], patients[place]) for _, place in kept),
        rejections=(*rejections, *refused.values()),
    )


def _refuse(usable: Sequence[Usable], places: Sequence[int]) -> Iterable[Rejection]:
    """Yield why those at *places*, which have the same pixels, are not used."""
    first, *others = (usable[place].candidate for place in places)
    if all(other.label == first.label for other in others):
        for other in others:
            yield Rejection(other.name, Code.DUPLICATE, f"the pixels of {first.name}")
    else:
        for one, other in zip((first, *others), (others[0], *[first] * len(others)), strict=True):
            yield Rejection(
                one.name, Code.CONFLICTING_DUPLICATE, f"the pixels of {other.name}, among labels that differ"
            )


def _record(entry: Usable, patient: str) -> ImageRecord:
    """Return the record of an image that is used."""
    return ImageRecord(
        path=entry.candidate.name,
        sha256=entry.sha256,
        accession=entry.candidate.accession,
        patient=patient,
        label=entry.candidate.label,
        view=entry.view,
        laterality=entry.laterality,
        split=entry.candidate.split,
    )
