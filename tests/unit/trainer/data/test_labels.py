from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.labels import read_labels
from trainer.errors import InputError

HEADER = "AccessionNumber,Classification,ClassificationDate\n"


def write(folder: Path, content: str | bytes) -> Path:
    """A label file with *content*."""
    path = folder / "labels.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_labels_keep_zeros_names_and_order(tmp_path: Path) -> None:
    """Accession numbers stay strings, and classes are those present, in order, as the file writes them."""
    labels = read_labels(write(tmp_path, HEADER + "0000003,4,\n0000001,1,2020-01-01\n0000002,2,\n0000001,1,\n"))
    assert labels.label_of == {"0000003": 2, "0000001": 0, "0000002": 1}
    assert labels.class_names == ("1", "2", "4")
    assert labels.excluded == frozenset()


def test_class_5_is_left_out(tmp_path: Path) -> None:
    """Class 5 is no class of the data set, and the program knows which accession numbers had it."""
    labels = read_labels(write(tmp_path, HEADER + "a,5,\nb,1,\nc,3,\n"))
    assert labels.label_of == {"b": 0, "c": 1}
    assert labels.class_names == ("1", "3")
    assert labels.excluded == {"a"}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ("1234", ("1", "2", "3", "4")),
        ("4", ("4",)),
        ("ABD", ("A", "B", "D")),
        ("0123", ("0", "1", "2", "3")),
        ("312", ("1", "2", "3")),
    ],
)
def test_base_is_decided_by_file(tmp_path: Path, values: str, names: tuple[str, ...]) -> None:
    """Numbers from 1, numbers from 0 and letters are told apart by the whole file, so that every value keeps its order."""
    rows = "".join(f"x{index},{value},\n" for index, value in enumerate(values))
    labels = read_labels(write(tmp_path, HEADER + rows))
    assert labels.class_names == names
    assert [labels.class_names[labels.label_of[f"x{index}"]] for index in range(len(values))] == list(values)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_spreadsheets(tmp_path: Path, delimiter: str, end: str, encoding: str) -> None:
    """Separators, line ends, byte order marks and encodings of spreadsheets, and line breaks in quotes, are read."""
    rows = [
        ["Notiz", "Classification", " AccessionNumber "],
        ["für\nsie", " 2 ", "007"],
        ['"', "1", "08"],
        ["", "", ""],
    ]
    lines = [
        delimiter.join(
            '"' + cell.replace('"', '""') + '"' if cell.strip('" ') != cell or "\n" in cell else cell for cell in row
        )
        for row in rows
    ]
    labels = read_labels(write(tmp_path, (end.join(lines) + end).encode(encoding)))
    assert labels.label_of == {"007": 1, "08": 0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEADER + "a,1,\nb,7,\n", ["line 3", "Classification", "'7'", "1, 2, 3, 4, 5"]),
        (HEADER + "a,1,\nb,,\n", ["line 3", "Classification", "''"]),
        (HEADER + "a,A,\nb,2,\n", ["line 3", "'2'", "A, B, C, D"]),
        (HEADER + "a,0,\nb,4,\n", ["line 3", "'4'", "line 2"]),
        (HEADER + "a,1,\na,2,\n", ["line 3", "'a'", "'2'", "'1'", "line 2"]),
        (HEADER + ",1,\n", ["line 2", "AccessionNumber"]),
        (HEADER + "a\n", ["line 2", "fields"]),
        (HEADER, ["no rows"]),
        ("", ["AccessionNumber"]),
        ("AccessionNumber,Grade\na,1\n", ["line 1", "Classification", "Grade"]),
        (HEADER + 'a,"1,\n', ["line 2"]),
        (b"\xff\xfe\x00", ["UTF-16"]),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path: Path, content: str | bytes, said: list[str]) -> None:
    """One line names the file, the row, the field, and what was expected."""
    path = write(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_labels(path)
    message = str(error.value)
    assert "\n" not in message
    assert "expected" in message
    assert all(part in message for part in [str(path), *said])


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, is named in one line."""
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            read_labels(path)


@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: (HEADER + text).encode())))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever is in a label file, it is read or refused in one line."""
    path = write(tmp_path_factory.mktemp("labels"), content)
    try:
        labels = read_labels(path)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017  not always raised
    else:
        assert set(labels.label_of.values()) == set(range(len(labels.class_names)))
