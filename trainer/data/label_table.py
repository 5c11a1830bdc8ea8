"""A label file's bytes -> its text, its header, and its rows with the lines where they begin."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from trainer.errors import InputError

_SHOWN = 40
"""Characters of a value that a message shows."""
_HEADER = 1 << 20
"""Characters in which the header is looked for."""
_LINE_END = re.compile(r"\r\n|\r|\n")
_LOOKS_LIKE_DATA = re.compile(r"\d{3}")
_DELIMITER_LINE = re.compile(r"""["']?sep=["']?([,;\t])["']*[ \t]*(?:[\r\n]|\Z)""", re.IGNORECASE)
"""Excel's own first line, by which it is told the delimiter."""
_TEXT_FORMULA = re.compile(r'="(.*)"', re.DOTALL)
"""A cell that keeps Excel from reading it as a number."""
_UTF_16 = {
    "utf-16-le": re.compile(rb"(?:[\r\n]\0)*(?:[^\0\r\n]\0)+(?:[\r\n]\0|\Z)"),
    "utf-16-be": re.compile(rb"(?:\0[\r\n])*(?:\0[^\0\r\n])+(?:\0[\r\n]|\Z)"),
}
"""Beginnings of text without a byte order mark: every other byte of the first line is zero."""


@dataclass(frozen=True)
class Header:
    """The first row of a table."""

    line: int
    """From 1."""
    columns: tuple[str, ...]
    """As the file writes them, without spaces around them; none where the first row cannot be read."""
    delimiter: str

    def places_of(self, column: str) -> list[int]:
        """Return where *column* stands; neither case nor underscores for blanks matter."""
        return [place for place, name in enumerate(self.columns) if plain(name) == plain(column)]

    def name_of(self, column: str) -> str:
        """Return *column*, which is there, as a message calls it: as the file does."""
        return show(self.columns[self.places_of(column)[0]])[1:-1]

    def shown(self) -> str:
        """Return the columns as a message lists them; without what may be the first row of a file that has no header."""
        names = ("(a number)" if _LOOKS_LIKE_DATA.search(name) else show(name)[1:-1] for name in self.columns)
        return _cut(", ".join(names), 300) or "none"


def plain(column: str) -> str:
    """Return *column* as names of columns are compared: some releases write `breast_density`, some `breast density`."""
    return " ".join(column.casefold().replace("_", " ").split())


def show(value: str) -> str:
    """Return *value* in quotes, on one line, cut to a length that leaves a message readable."""
    return repr(_cut(value, _SHOWN))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def read_text(path: Path) -> str:
    """
    Return the text of *path* in whatever encoding a spreadsheet has given it.

    Raises:
        InputError: no such file, or no text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a label file") from error
    text = _decode(path, data)
    if "\0" in text:
        line = len(split_lines(text[: text.index("\0")]))
        raise InputError(f"{path}: line {line}: a NUL byte, expected a table of text")
    return text


def _decode(path: Path, data: bytes) -> str:
    for encoding in _encodings(data):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(f"{path}: the text cannot be decoded, expected UTF-8, UTF-16 or Latin-1")


def _encodings(data: bytes) -> Sequence[str]:
    """Return the encodings that *data* may be in, the likeliest first."""
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return ("utf-16",)
    return [name for name, start in _UTF_16.items() if start.match(data)] or ("utf-8-sig", "latin-1")


def split_lines(text: str) -> list[str]:
    """Return the lines of *text* as the csv module counts them; `str.splitlines` knows of more line ends."""
    return _LINE_END.split(text)


def read_header(path: Path, text: str) -> Header:
    """Return the first row that is not blank, split by the delimiter that Excel's line tells, or that makes most of it."""
    start = text[:_HEADER]  # the whole of a long file, three times over, would cost more than its rows
    told = _DELIMITER_LINE.match(text)
    headers = [_try_header(path, start, delimiter) for delimiter in (told[1] if told else ",;\t")]
    return max(headers, key=lambda header: len(header.columns))


def _try_header(path: Path, text: str, delimiter: str) -> Header:
    """Return the header if *delimiter* is the file's; a wrong one may well be no table at all."""
    try:
        line, cells = next(_records(path, text, delimiter), (1, []))
    except InputError:
        return Header(1, (), delimiter)
    return Header(line, tuple(map(_clean, cells)), delimiter)


def require_columns(path: Path, header: Header, columns: Iterable[str]) -> None:
    """Accept *header* if each of *columns* stands in it once. Raises InputError."""
    for column in columns:
        if not header.places_of(column):
            raise InputError(
                f"{path}: line {header.line}: no column {column}, expected one; the columns are {header.shown()}"
            )
        _place(path, header, column)


def read_cells(path: Path, text: str, header: Header, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """
    Yield the line where each row after the header begins, and its cells of *columns* without spaces around them.

    A column that is not there has empty cells; blank rows are left out.

    Raises:
        InputError: the text is no table, a row is too short, or longer than the header, so that its cells are shifted.
    """
    places = [_place(path, header, column) for column in columns]
    last, width = max(places), len(header.columns)
    pick = itemgetter(*places)  # twice as fast as a comprehension, and this runs for every row
    records = _records(path, text, header.delimiter)
    next(records)
    for line, cells in records:
        if len(cells) <= last:
            upto = show(header.columns[last])
            raise InputError(f"{path}: line {line}: {len(cells)} of {width} fields, expected them up to {upto}")
        if len(cells) > width and any(cells[width:]):
            raise InputError(f"{path}: line {line}: {len(cells)} fields, expected {width} as in line {header.line}")
        cells.append("")  # where the place -1 of a column that is not there leads
        yield line, list(map(_clean, pick(cells)))


def _clean(cell: str) -> str:
    """Return *cell* without spaces around it; Excel's ="0001" means 0001."""
    cell = cell.strip()
    formula = _TEXT_FORMULA.fullmatch(cell)
    return cell if formula is None else formula[1].replace('""', '"').strip()


def _place(path: Path, header: Header, column: str) -> int:
    """Return where *column* stands, -1 where it does not or has no name. Raises InputError where it stands twice."""
    places = header.places_of(column) if column else []
    if len(places) > 1:
        raise InputError(f"{path}: line {header.line}: {len(places)} columns {column}, expected one")
    return places[0] if places else -1


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    lines = io.StringIO(text, newline="")
    first = 1
    if _DELIMITER_LINE.match(text):
        lines.readline()
        first = 2
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = first
    try:
        for cells in reader:
            if "".join(cells).strip():
                yield line, cells
            line = first + reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}: line {line}: {error}, expected a table of text") from error
