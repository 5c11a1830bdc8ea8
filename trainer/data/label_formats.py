"""The formats of label files: what each is recognised by, what its rows say, and which images they mean."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from trainer.data.grades import LETTERS, NUMBERS, TISSUES, Scale
from trainer.data.label_table import Header, read_cells, show, split_lines
from trainer.data.records import Split
from trainer.errors import InputError


class LabelFormat(StrEnum):
    """Kinds of label files."""

    ARCHIVE = "archive"
    INBREAST = "inbreast"
    CBIS_DDSM = "cbis-ddsm"
    VINDR = "vindr"
    RSNA = "rsna"
    MINI_MIAS = "mini-mias"
    CSV = "csv"


Key = tuple[str, bool]
"""`Row.key` and `Row.outside`."""


class Row(NamedTuple):
    """What one row says."""

    line: int
    """Where it begins in the file, from 1."""
    key: str
    outside: bool
    """Whether the key is a path where that may be none, or one that leads out of the root."""
    value: str
    """As written, without spaces around it."""
    patient: str | None
    view: str | None
    laterality: str | None
    split: Split | None


@dataclass(frozen=True)
class Layout:
    """One format. Columns are called as they are published; they are found whatever their case."""

    format: LabelFormat
    noun: str
    """What names the images, for messages."""
    image: tuple[str, ...]
    """Columns that name the images."""
    label: str
    """Column of the grade."""
    to_key: Callable[[Sequence[str]], Key]
    """From the cells of `image`, none of them empty."""
    keys_of: Callable[[str], Sequence[str]]
    """From a file's path to the names of keys that can mean it."""
    also: tuple[str, ...] = ()
    """Further columns that it is recognised by."""
    patient: str = ""
    laterality: str = ""
    view: str = ""
    split: str = ""
    """Columns that may be there; empty where the format has none."""
    split_of: Callable[[str], Split | None] = lambda _: None
    """From the key's name, where there is no column."""
    scale: Scale | None = None
    """None where the values of the file decide."""

    @property
    def published(self) -> bool:
        """Whether the format is a public data set's: its scale is fixed, and an image without a grade is part of it."""
        return self.scale is not None

    @property
    def required(self) -> tuple[str, ...]:
        """Columns without which a file is not of this format."""
        return tuple(dict.fromkeys((*self.also, *self.image, self.label)))

    def without_split(self) -> Layout:
        """Return this format as it is read where its split is not asked for: that column may then say anything."""
        return replace(self, split="", split_of=lambda _: None)


_SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}
_SPLITS: dict[str, Split | None] = {
    "": None,
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_INBREAST_NAME = re.compile(r"([0-9]+)(?:_([0-9a-f]{16})_\w+)?\.(?:dcm|dicom|png|jpe?g|pgm)", re.IGNORECASE)
_INBREAST_FLOAT = re.compile(r"([0-9]+)\.0")
"""The number of a file after a spreadsheet has taken it for one."""
_CBIS_FOLDER = re.compile(r"(?:mass|calc)-(training|test)_", re.IGNORECASE)
_MIAS_NAME = re.compile(r"(mdb[0-9]{3})[a-z]*", re.IGNORECASE)
_MIAS_LINE = re.compile(r"\W*(mdb[0-9]{3})[a-z]*(?:[\s,;]+(.*)|$)", re.IGNORECASE)
_MIAS_FIELD = re.compile(r"[^\s,;]+")
_MIAS_FINDINGS = frozenset({"calc", "circ", "spic", "misc", "arch", "asym", "norm"})
_TAG = re.compile(r"<[^<>]*>")


def _name(cells: Sequence[str]) -> Key:
    """Return the key of names of folders and files, put together; anything else than a name could leave the root."""
    name = "/".join(cells)
    return name, name.count("/") >= len(cells) or "\\" in name or not {".", ".."}.isdisjoint(cells)


def _inbreast_key(cells: Sequence[str]) -> Key:
    match = _INBREAST_NAME.fullmatch(cells[0]) or _INBREAST_FLOAT.fullmatch(cells[0])
    return _name([match[1]] if match else cells)


def _cbis_key(cells: Sequence[str]) -> Key:
    """Return the case's folder: the first, save where somebody has put the folder of a download in front."""
    folders = cells[0].replace("\\", "/").split("/")
    folder = next(filter(_CBIS_FOLDER.match, folders), folders[0])
    return folder, folder in {"", ".", ".."}


def _path_key(cells: Sequence[str]) -> Key:
    written = cells[0].replace("\\", "/")
    path = posixpath.normpath(written)
    if path.startswith(("/", "../")) or path == ".." or re.match("[A-Za-z]:/", written):
        return cells[0], True
    return path, False


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _folder_and_stem(path: str) -> list[str]:
    *folders, name = path.rsplit("/", 2)
    return [f"{folders[-1]}/{_stem(name)}"] if folders else []


def _inbreast_number(path: str) -> list[str]:
    match = _INBREAST_NAME.fullmatch(posixpath.basename(path))
    return [match[1]] if match else []


def inbreast_patient(path: str) -> str | None:
    """Return the patient in the name of an INbreast file; the label file names none, and a renamed file has none."""
    match = _INBREAST_NAME.fullmatch(posixpath.basename(path))
    return match[2] if match else None


def _cbis_split(folder: str) -> Split | None:
    match = _CBIS_FOLDER.match(folder)
    return None if match is None else _SPLITS[match[1].casefold()]


def _side(cell: str) -> str | None:
    """Return the side that the first word names."""
    words = cell.casefold().split()
    return _SIDES.get(words[0]) if words else None


def _mias_reference(path: str) -> list[str]:
    match = _MIAS_NAME.fullmatch(_stem(posixpath.basename(path)))
    return [match[1].lower()] if match else []


_LAYOUTS = (
    Layout(
        LabelFormat.ARCHIVE,
        noun="accession number",
        image=("AccessionNumber",),
        label="Classification",
        to_key=_name,
        keys_of=lambda path: [path.partition("/")[0]],
        patient="patient",
        split="split",
    ),
    Layout(
        LabelFormat.INBREAST,
        noun="file name",
        image=("File Name",),
        label="ACR",
        to_key=_inbreast_key,
        keys_of=_inbreast_number,
        laterality="Laterality",
        view="View",
        scale=NUMBERS,
    ),
    Layout(
        LabelFormat.CBIS_DDSM,
        noun="image",
        image=("image file path",),
        label="breast_density",
        to_key=_cbis_key,
        keys_of=lambda path: path.split("/")[:-1],
        also=("patient_id",),
        patient="patient_id",
        laterality="left or right breast",
        view="image view",
        split_of=_cbis_split,
        scale=NUMBERS,
    ),
    Layout(
        LabelFormat.VINDR,
        noun="image",
        image=("study_id", "image_id"),
        label="breast_density",
        to_key=_name,
        keys_of=_folder_and_stem,
        patient="study_id",
        laterality="laterality",
        view="view_position",
        split="split",
        scale=LETTERS,
    ),
    Layout(
        LabelFormat.RSNA,
        noun="image",
        image=("patient_id", "image_id"),
        label="density",
        to_key=_name,
        keys_of=_folder_and_stem,
        also=("laterality", "view"),
        patient="patient_id",
        laterality="laterality",
        view="view",
        scale=LETTERS,
    ),
    Layout(
        LabelFormat.MINI_MIAS,
        noun="film",
        image=("reference",),
        label="tissue",
        to_key=_name,
        keys_of=_mias_reference,
        scale=TISSUES,
    ),
    Layout(
        LabelFormat.CSV,
        noun="image",
        image=("image",),
        label="label",
        to_key=_path_key,
        keys_of=lambda path: [path],
        patient="patient",
        laterality="laterality",
        view="view",
        split="split",
    ),
)
LAYOUTS = {layout.format: layout for layout in _LAYOUTS}
"""In the order in which they are tried: a public data set's columns say more than two plain words."""


def read_table(path: Path, text: str, header: Header, layout: Layout) -> Iterator[Row]:
    """Yield the rows of a table with columns. Raises InputError."""
    n = len(layout.image)
    optional = (layout.patient, layout.view, layout.laterality, layout.split)
    columns = (*layout.image, layout.label, *optional)
    for line, cells in read_cells(path, text, header, columns):
        names, (value, patient, view, side, split) = cells[:n], cells[n:]
        if not all(names):
            empty = layout.image[names.index("")]
            raise InputError(f"{path}: line {line}, {empty}: empty, expected the {layout.noun}")
        if split.casefold() not in _SPLITS:
            raise InputError(f"{path}: line {line}, {layout.split}: {show(split)}, expected train, validation or test")
        key, outside = layout.to_key(names)
        yield Row(
            line,
            key,
            outside,
            value,
            patient or None,
            view.upper() or None,
            _side(side),
            _SPLITS[split.casefold()] or layout.split_of(key),
        )


def mias_lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, reference and tissue (or nothing) of each row: prose, headings and markup are passed over."""
    for line, written in enumerate(split_lines(text), start=1):
        if match := _MIAS_LINE.match(_TAG.sub(" ", written)):
            tissue, *others = _MIAS_FIELD.findall(match[2] or "") or [""]
            if not _begins_prose(tissue, others):
                yield line, match[1].lower(), tissue


def _begins_prose(word: str, others: Sequence[str]) -> bool:
    """Tell whether *word* after a reference, and *others*, are no tissue and finding; a short line is none, lest it be lost."""
    letter = len(word) == 1 and word.isalpha()
    return bool(others) and not letter and others[0].casefold() not in _MIAS_FINDINGS


def read_mias(path: Path, text: str) -> Iterator[Row]:
    """
    Yield the rows of mini-MIAS's Info.txt. Raises InputError.

    Its preface calls the even numbers left. They are right: the markers that can be read on the films say so, and so do
    the names of the full-size films, mdb001lm and mdb002rl.
    """
    for line, reference, tissue in mias_lines(text):
        if not tissue:
            raise InputError(f"{path}: line {line}: 1 field, expected a reference and a tissue as in mdb003 D NORM")
        number = int(reference.removeprefix("mdb"))
        odd = number - 1 + number % 2
        yield Row(
            line=line,
            key=reference,
            outside=False,
            value=tissue,
            patient=f"mdb{odd:03d}-{odd + 1:03d}",
            view="MLO",
            laterality="L" if number % 2 else "R",
            split=None,
        )
