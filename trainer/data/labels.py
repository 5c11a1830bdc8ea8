"""
A label file -> the class of each accession number.

The one format so far is the archive layout's: `AccessionNumber,Classification,ClassificationDate`, one row an accession.
Which values a file may use is decided once for the whole file, never value by value.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import InputError

ACCESSION = "AccessionNumber"
LABEL = "Classification"

_EXCLUDED = "5"
"""Not a density grade but a category of its own in these archives: left out, and listed as such."""
_NUMBERS = ("1", "2", "3", "4", _EXCLUDED)
_NUMBERS_FROM_0 = ("0", "1", "2", "3")
_LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Labels:
    """What a label file says, with labels in the program's own encoding."""

    label_of: dict[str, int]
    """Label 0..C-1 by accession number."""
    class_names: tuple[str, ...]
    """As the file writes them, in label order."""
    excluded: frozenset[str]
    """Accession numbers of class 5."""


@dataclass(frozen=True)
class _Row:
    line: int
    """In the file, from 1."""
    accession: str
    value: str


def read_labels(path: Path) -> Labels:
    """
    Return the labels in *path*: UTF-8, UTF-16 or Latin-1, separated by commas, semicolons or tabs.

    Raises:
        InputError: no such file, no such columns, an unknown value, or one accession number with two values.
    """
    rows = _read_rows(path)
    table = _choose_table(path, rows)
    value_of: dict[str, _Row] = {}
    for row in rows:
        if row.value not in table:
            raise InputError(f"{path}: line {row.line}, {LABEL}: {row.value!r}, expected one of {', '.join(table)}")
        first = value_of.setdefault(row.accession, row)
        if first.value != row.value:
            raise InputError(
                f"{path}: line {row.line}, {LABEL}: {row.accession!r} is {row.value!r} here and {first.value!r} "
                f"in line {first.line}, expected one value an accession number"
            )
    present = {row.value for row in rows}
    class_names = tuple(value for value in table if value in present and value != _EXCLUDED)
    number_of = {name: label for label, name in enumerate(class_names)}
    return Labels(
        label_of={name: number_of[row.value] for name, row in value_of.items() if row.value != _EXCLUDED},
        class_names=class_names,
        excluded=frozenset(name for name, row in value_of.items() if row.value == _EXCLUDED),
    )


def _choose_table(path: Path, rows: Iterable[_Row]) -> tuple[str, ...]:
    """
    Return the values that the file may use, in label order: by the first row's kind, and by whether a 0 occurs.

    Raises:
        InputError: both 0 and 4 or 5 occur, so that neither base is credible.
    """
    values = {row.value: row.line for row in reversed(list(rows))}
    if next(reversed(values)) in _LETTERS:
        return _LETTERS
    if "0" not in values:
        return _NUMBERS
    for value in ("4", _EXCLUDED):
        if value in values:
            raise InputError(
                f"{path}: line {values[value]}, {LABEL}: {value!r} beside a '0' in line {values['0']}, "
                "expected 0 to 3 or 1 to 5 in the whole file"
            )
    return _NUMBERS_FROM_0


def _read_rows(path: Path) -> list[_Row]:
    """Return the rows of *path*, blank lines left out; there is one at least."""
    text = _read_text(path)
    header, _, _ = text.partition("\n")
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        for name in (ACCESSION, LABEL):
            if columns.count(name) != 1:
                raise InputError(
                    f"{path}: line 1: {columns.count(name) or 'no'} columns {name}, expected one; "
                    f"the columns are {', '.join(columns)[:200] or 'none'}"
                )
        accession, label = columns.index(ACCESSION), columns.index(LABEL)
        rows = [_to_row(path, reader.line_num, cells, accession, label) for cells in reader if any(cells)]
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}, expected a table of text") from error
    if not rows:
        raise InputError(f"{path}: no rows, expected one an accession number")
    return rows


def _to_row(path: Path, line: int, cells: list[str], accession: int, label: int) -> _Row:
    """Return one row of the table, its cells without spaces around them."""
    if len(cells) <= max(accession, label):
        raise InputError(f"{path}: line {line}: {len(cells)} fields, expected {ACCESSION} and {LABEL}")
    row = _Row(line, cells[accession].strip(), cells[label].strip())
    if not row.accession:
        raise InputError(f"{path}: line {line}, {ACCESSION}: empty, expected an accession number")
    return row


def _read_text(path: Path) -> str:
    """Return the text of *path* in whatever encoding a spreadsheet has given it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a label file") from error
    encodings = ("utf-16",) if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else ("utf-8-sig", "latin-1")
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(f"{path}: the text cannot be decoded, expected UTF-8, UTF-16 or Latin-1")
