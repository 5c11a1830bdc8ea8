"""
A label file -> the class of each image, and what else the file says of it.

Errors name lines, columns and grades, never what a row is about: an accession number identifies a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.config import SelectionConfig
from trainer.data.grades import CLASS_5, OPEN_SCALES, TISSUES, Scale, Use, choose_classes, choose_scale, squeeze
from trainer.data.label_formats import (
    LAYOUTS,
    LabelFormat,
    Layout,
    Row,
    inbreast_patient,
    mias_lines,
    read_mias,
    read_table,
)
from trainer.data.label_table import Header, read_header, read_text, require_columns, show
from trainer.data.records import Code, Split
from trainer.errors import InputError

_DEFAULT = SelectionConfig()

Meaning = int | str | None
"""The place of a grade in its scale; a value that is no grade, as it is compared; None where nothing is said."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a label file says of the images under one key."""

    line: int
    """In the file, from 1: where the first row of that key begins."""
    label: int | None
    """0..C-1; None where these images are not used."""
    code: Code | None
    """Why not: EXCLUDED_CLASS, UNKNOWN_LABEL, NO_LABEL or OUTSIDE_ROOT; None where they are used."""
    reason: str
    """One line; empty where they are used."""
    patient: str | None
    """Where the file names one."""
    view: str | None
    """In upper case, as written ("CC", "MLO")."""
    laterality: str | None
    """"L", "R" or None."""
    split: Split | None
    """Where the file or the key names one, and it is asked for."""


@dataclass(frozen=True)
class Labels:
    """What a label file says, with labels in the program's own encoding."""

    format: LabelFormat
    entries: dict[str, Entry]
    """By key: what the format calls an image, or all images of one folder."""
    class_names: tuple[str, ...]
    """As the file writes them, in label order."""

    def key_of(self, path: str) -> str | None:
        """Return the key under which the file at *path* (relative to the root, POSIX) has its label, or None."""
        return next((key for key in LAYOUTS[self.format].keys_of(path) if key in self.entries), None)

    def patient_of(self, path: str, key: str) -> str | None:
        """Return the patient that the label file tells for *key*, or the name of the file at *path*, or None."""
        patient = self.entries[key].patient
        return inbreast_patient(path) if patient is None and self.format is LabelFormat.INBREAST else patient


@dataclass(frozen=True)
class _Source:
    """A label file, read but not yet understood."""

    layout: Layout
    column: str
    """What the column of the grade is called in the file."""
    rows: list[Row]
    """One at least."""


def read_labels(path: Path, selection: SelectionConfig = _DEFAULT) -> Labels:
    """
    Return the labels in *path*: UTF-8, UTF-16 or Latin-1, separated by commas, semicolons or tabs; or mini-MIAS's Info.txt.

    Raises:
        InputError: no such file, no such columns, an unknown value, an image with two values, or classes that the file's
            scale does not have.
    """
    source = _read_source(path, selection)
    uses = _count(source.rows)
    scale = source.layout.scale or choose_scale(path, source.column, uses)
    meanings = _meanings(source.layout, scale, uses)
    if not selection.skip_unknown_labels:
        _check_values(path, source, scale, meanings, uses)
    merged, conflicts = _merge_rows(source, meanings)
    if conflicts and not selection.skip_unknown_labels:
        raise InputError(f"{path}: {next(iter(conflicts.values()))}, expected one for each {source.layout.noun}")
    left_out = set() if selection.include_class_5 else {CLASS_5}
    used = (meanings[row.value] for name, row in merged.items() if name not in conflicts and not row.outside)
    present = {meaning for meaning in used if isinstance(meaning, int)} - left_out
    classes = choose_classes(path, scale, selection.classes, present, left_out, _spellings(meanings))
    return Labels(
        format=source.layout.format,
        entries={
            name: _describe(row, conflicts.get(name), source, meanings, classes.label_of)
            for name, row in merged.items()
        },
        class_names=classes.names,
    )


def _read_source(path: Path, selection: SelectionConfig) -> _Source:
    """
    Return the rows of the label file *path*, which is of the format selected or, with auto, of the first that it fits.

    Raises:
        InputError: no such file, no such columns, or a row that is not one of its format.
    """
    text = read_text(path)
    header = read_header(path, text)
    auto = selection.format == "auto"
    layout = _recognise(path, text, header) if auto else LAYOUTS[LabelFormat(selection.format)]
    if not selection.published_split:
        layout = layout.without_split()
    if layout.format is LabelFormat.MINI_MIAS:
        column, rows = layout.label, list(read_mias(path, text))
    else:
        require_columns(path, header, layout.required)
        column, rows = header.name_of(layout.label), list(read_table(path, text, header, layout))
    if not rows:
        raise InputError(f"{path}: no rows, expected one at least for the format {layout.format}")
    return _Source(layout, column, rows)


def _recognise(path: Path, text: str, header: Header) -> Layout:
    for layout in LAYOUTS.values():
        if layout.format is not LabelFormat.MINI_MIAS and all(map(header.places_of, layout.required)):
            return layout
    if any(TISSUES.grade_of(tissue) is not None for _, _, tissue in mias_lines(text)):
        return LAYOUTS[LabelFormat.MINI_MIAS]
    formats = (
        f"{layout.format} ({', '.join(layout.required)})"
        for layout in LAYOUTS.values()
        if layout.format is not LabelFormat.MINI_MIAS
    )
    raise InputError(
        f"{path}: line {header.line}: the columns are {header.shown()}, expected those of {', '.join(formats)}, "
        "or lines of mini-mias (mdb001 G CIRC B 535 425 197)"
    )


def _count(rows: Iterable[Row]) -> dict[str, Use]:
    """Return the values of *rows*, in the order in which they first occur."""
    counts: dict[str, int] = {}
    lines: dict[str, int] = {}
    for row in rows:
        counts[row.value] = counts.get(row.value, 0) + 1
        lines.setdefault(row.value, row.line)
    return {value: Use(count, lines[value]) for value, count in counts.items()}


def _meanings(layout: Layout, scale: Scale, values: Iterable[str]) -> dict[str, Meaning]:
    """Return what each of *values* means. An empty cell of a public data set is no mistake: some images have no grade."""
    meanings: dict[str, Meaning] = {}
    for value in values:
        grade = scale.grade_of(value)
        if grade is not None:
            meanings[value] = grade
        else:
            meanings[value] = None if layout.published and not value else squeeze(value).casefold()
    return meanings


def _spellings(meanings: Mapping[str, Meaning]) -> dict[int, str]:
    """Return how the file spells each grade for which it has one spelling."""
    spelt: dict[int, set[str]] = {}
    for value, meaning in meanings.items():
        if isinstance(meaning, int):
            spelt.setdefault(meaning, set()).add(squeeze(value))
    return {grade: spellings.pop() for grade, spellings in spelt.items() if len(spellings) == 1}


def _check_values(
    path: Path, source: _Source, scale: Scale, meanings: Mapping[str, Meaning], uses: Mapping[str, Use]
) -> None:
    """Accept the file if each value is a grade, or an empty cell that may be. Raises InputError."""
    unknown = next((value for value, meaning in meanings.items() if isinstance(meaning, str)), None)
    if unknown is None:
        return
    decided = source.layout.published or any(isinstance(meaning, int) for meaning in meanings.values())
    known = "; ".join(choice.known() for choice in ((scale,) if decided else OPEN_SCALES))
    raise InputError(f"{path}: line {uses[unknown].line}, {source.column}: {show(unknown)}, expected one of {known}")


def _merge_rows(source: _Source, meanings: Mapping[str, Meaning]) -> tuple[dict[str, Row], dict[str, str]]:
    """
    Return one row for each key, and what the first contradiction is where rows of one key say different things.

    Where a row says nothing and a later one does, the later one counts: some files have a row for each finding of an image.
    """
    merged: dict[str, Row] = {}
    conflicts: dict[str, str] = {}
    line_of: dict[tuple[str, str], int] = {}  # where something was said that the key's first row leaves empty
    for row in source.rows:
        name = row.key
        first = merged.setdefault(name, row)
        if first is row or name in conflicts:
            continue
        for field in ("value", "patient", "view", "laterality", "split"):
            said, before = (_said(of, field, meanings) for of in (row, first))
            if before is None and said is not None:
                merged[name] = merged[name]._replace(**{field: getattr(row, field)})
                line_of[name, field] = row.line
            elif said is not None and said != before:
                conflicts[name] = _contradiction(source, row, first, field, line_of.get((name, field), first.line))
                break
    return merged, conflicts


def _said(row: Row, field: str, meanings: Mapping[str, Meaning]) -> Meaning:
    """Return what *row* says in *field*, as it is compared; None where it says nothing."""
    said: str | None = getattr(row, field)
    return meanings[row.value] if field == "value" else said


def _contradiction(source: _Source, row: Row, first: Row, field: str, line: int) -> str:
    """Return that *row* and *first*, or what was added to it from *line*, differ in *field*; no patient's name is in it."""
    noun = source.layout.noun
    if field == "value":
        said, before = show(row.value), show(first.value)
        return f"line {row.line}, {source.column}: {said} for the {noun} of line {line}, which is {before} there"
    return f"line {row.line}, {field}: another than in line {line} for the same {noun}"


def _describe(
    row: Row, conflict: str | None, source: _Source, meanings: Mapping[str, Meaning], label_of: Mapping[int, int]
) -> Entry:
    """Return what *row*, in which all rows of its key are merged, means for the images."""
    meaning = meanings[row.value]
    label, code, reason = None, None, ""
    if row.outside:
        code, reason = Code.OUTSIDE_ROOT, f"line {row.line}: the {source.layout.noun} is a path that leads elsewhere"
    elif conflict is not None:
        code, reason = Code.UNKNOWN_LABEL, conflict
    elif meaning is None:
        code, reason = Code.NO_LABEL, f"line {row.line}, {source.column}: empty"
    elif isinstance(meaning, str):
        code, reason = Code.UNKNOWN_LABEL, f"line {row.line}, {source.column}: {show(row.value)} is no known value"
    elif meaning in label_of:
        label = label_of[meaning]
    else:
        code, reason = Code.EXCLUDED_CLASS, "class 5 is left out"
    return Entry(row.line, label, code, reason, row.patient, row.view, row.laterality, row.split)
