"""The data: what was used, how it is divided, and what was not used."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping

from hpo.report.blocks import Block, Facts, Notice, Paragraph, Section, Table
from hpo.report.findings import Findings
from hpo.report.wording import count, setting
from trainer.config import SelectionConfig
from trainer.data.records import Code

MEANINGS = {
    Code.TRUNCATED: "broken: the file ends too early",
    Code.UNDECODABLE: "broken: its pixels cannot be decoded",
    Code.NOT_IMAGE: "broken: no image that is known here",
    Code.BLANK: "broken: one grey level throughout",
    Code.TOO_LARGE: "broken: more pixels than any mammogram has",
    Code.NOT_MAMMOGRAPHY: "another modality, a dose report, colours",
    Code.MULTIFRAME: "several frames, such as tomosynthesis",
    Code.FOR_PROCESSING: "raw: its intensities follow another law",
    Code.EXCLUDED_VIEW: "a spot or magnified view, or one that was not asked for",
    Code.DUPLICATE: "the pixels of an image that is used, with the same label",
    Code.CONFLICTING_DUPLICATE: "the pixels of an image with another label: none of them is used",
    Code.NO_LABEL: "the label file says nothing of it",
    Code.NO_IMAGE: "a label without an image",
    Code.EXCLUDED_CLASS: "of class 5",
    Code.UNKNOWN_LABEL: "its label is none that is known",
    Code.OUTSIDE_ROOT: "a path out of the root",
    Code.LINK: "a link that leads nowhere, in a circle, or to an image that is used",
    Code.SYSTEM_FILE: "a file of the operating system",
}
_SET_ASIDE = "set aside"


def archive(found: Findings) -> Section:
    """Return what the study was searched on."""
    registration = found.study.registration
    blocks: list[Block] = [*_folds(registration.folds_csv), *_rejections(found), _selection(found)]
    hashes = Facts([("data hash", registration.data_hash), ("folds hash", registration.folds_hash)])
    return Section("data", "Data and rejections", [*blocks, hashes])


def _folds(folds_csv: str) -> list[Block]:
    """Return how many images and patients there are of each class in each fold."""
    images: Counter[tuple[str, str]] = Counter()
    patients: dict[tuple[str, str], set[str]] = defaultdict(set)
    everybody: set[str] = set()
    for row in csv.DictReader(io.StringIO(folds_csv, newline="")):
        cell = row["label"], row["fold"] or _SET_ASIDE
        images[cell] += 1
        patients[cell].add(row["patient"])
        everybody.add(row["patient"])
    if not images:
        return [Notice("The study was registered without a table of its folds.")]
    labels = list(dict.fromkeys(sorted((label for label, _ in images), key=_natural)))
    folds = list(dict.fromkeys(sorted((fold for _, fold in images), key=_natural)))
    rows = [
        (
            label,
            *(f"{images[label, fold]} ({len(patients[label, fold])})" for fold in folds),
            f"{sum(images[label, fold] for fold in folds)} ({len(set().union(*(patients[label, fold] for fold in folds)))})",
        )
        for label in labels
    ]
    in_fold = [set().union(*(patients[label, fold] for label in labels)) for fold in folds]
    total = [
        f"{sum(images[label, fold] for label in labels)} ({len(each)})"
        for fold, each in zip(folds, in_fold, strict=True)
    ]
    rows.append(("all", *total, f"{images.total()} ({len(everybody)})"))
    aside = " What is set aside is the label file's own test set: no trial has seen it." if _SET_ASIDE in folds else ""
    heading = ("class", *(fold if fold == _SET_ASIDE else f"fold {fold}" for fold in folds), "all")
    return [
        Paragraph(
            f"{count(images.total(), 'image')} of {count(len(everybody), 'patient')} in {count(len(labels), 'class', 'classes')}."
            f" All images of a patient are in one fold, the same for every trial.{aside}"
        ),
        Table(
            "Images (patients) that validate in each fold, by class. A patient may be in several classes.",
            heading,
            rows,
        ),
    ]


def _natural(text: str) -> tuple[int, str]:
    """Sort numbers by their value, before words."""
    return (int(text), "") if text.isdecimal() else (10**9, text)


def _rejections(found: Findings) -> list[Block]:
    """Return how many images and labels were not used, by code."""
    counts = _rejected(found)
    if counts is None:
        return [
            Notice("What was not used is unknown here: study.json and data_report.csv are not in the study's folder.")
        ]
    if not counts:
        return [Paragraph("Every image of the archive was used.")]
    known = {code.value: text for code, text in MEANINGS.items()}
    rows = [(code, known.get(code, ""), str(number)) for code, number in counts.items()]
    return [
        Table(
            f"{count(sum(counts.values()), 'image or label', 'images and labels')} not used, by code; which ones is in"
            " data_report.csv.",
            ("code", "meaning", "count"),
            rows,
            words=frozenset({0, 1}),
        )
    ]


def _rejected(found: Findings) -> Mapping[str, int] | None:
    if found.record is not None:
        return found.record.rejected
    if found.rejections is not None:
        return dict(sorted(Counter(rejection.code.value for rejection in found.rejections).items()))
    return None


def _selection(found: Findings) -> Facts:
    """Return how images were chosen and prepared."""
    section, train = found.study.file.data, found.study.file.train
    chosen = {name: getattr(section, name) for name in SelectionConfig.model_fields}
    prepared = train.preprocessing().model_dump()
    return Facts(
        [
            ("selection", ", ".join(f"{name} {setting(value)}" for name, value in chosen.items())),
            ("preprocessing", ", ".join(f"{name} {setting(value)}" for name, value in prepared.items())),
        ]
    )
