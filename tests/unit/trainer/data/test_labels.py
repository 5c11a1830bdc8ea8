from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import SelectionConfig
from trainer.data.labels import Entry, Labels, read_labels
from trainer.data.records import Code
from trainer.errors import InputError

HEADER = "AccessionNumber,Classification,ClassificationDate\n"
SKIP = SelectionConfig(skip_unknown_labels=True)


def write(folder: Path, content: str | bytes) -> Path:
    """A label file with *content*."""
    path = folder / "labels.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def label_of(labels: Labels) -> dict[str, int]:
    """The labels of the images that are used, by key."""
    return {key: entry.label for key, entry in labels.entries.items() if entry.label is not None}


def codes(labels: Labels) -> dict[str, Code]:
    """Why the others are not used, by key."""
    return {key: entry.code for key, entry in labels.entries.items() if entry.code is not None}


def refusal(path: Path, selection: SelectionConfig = SKIP) -> str:
    """The message with which *path* is refused: one line that names the file and what was expected."""
    with pytest.raises(InputError) as error:
        read_labels(path, selection)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))
    assert "expected" in message
    return message


def test_labels_keep_zeros_names_and_order(tmp_path: Path) -> None:
    """Accession numbers stay strings, and classes are those present, in order, as the file writes them."""
    labels = read_labels(write(tmp_path, HEADER + "0000003,4,\n0000001,1,2020-01-01\n0000002,2,\n0000001,1,\n"))
    assert label_of(labels) == {"0000003": 2, "0000001": 0, "0000002": 1}
    assert labels.class_names == ("1", "2", "4")
    assert labels.entries["0000001"] == Entry(3, 0, None, "", None, None, None, None)


def test_class_5_is_left_out(tmp_path: Path) -> None:
    """Class 5 is no class of the data set unless it is asked for, and the program knows which accession numbers had it."""
    path = write(tmp_path, HEADER + "a,5,\nb,1,\nc,3,\n")
    labels = read_labels(path)
    assert label_of(labels) == {"b": 0, "c": 1}
    assert labels.class_names == ("1", "3")
    assert codes(labels) == {"a": Code.EXCLUDED_CLASS}
    labels = read_labels(path, SelectionConfig(include_class_5=True))
    assert label_of(labels) == {"a": 2, "b": 0, "c": 1}
    assert labels.class_names == ("1", "3", "5")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ("1234", ("1", "2", "3", "4")),
        ("4", ("4",)),
        ("ABD", ("A", "B", "D")),
        ("0123", ("0", "1", "2", "3")),
        ("312", ("1", "2", "3")),
        ("FGD", ("F", "G", "D")),
        ("cab", ("a", "b", "c")),
    ],
)
def test_base_is_decided_by_file(tmp_path: Path, values: str, names: tuple[str, ...]) -> None:
    """Numbers from 1, numbers from 0 and letters are told apart by the whole file, so that every value keeps its order."""
    rows = "".join(f"x{index},{value},\n" for index, value in enumerate(values))
    labels = read_labels(write(tmp_path, HEADER + rows))
    assert labels.class_names == names
    assert [labels.class_names[label_of(labels)[f"x{index}"]] for index in range(len(values))] == list(values)


@pytest.mark.parametrize(
    ("values", "classes", "names", "numbers"),
    [
        (["1", "1.0", "2.0"], "auto", ("1", "2.0"), [0, 0, 1]),
        (["ACR II", "acr 2", "IV"], "auto", ("2", "IV"), [0, 0, 1]),
        (["Density  C", "density c", "A"], "auto", ("A", "C"), [1, 1, 0]),
        (["2", "5", "2"], "multiclass", ("1", "2", "3", "4"), [1, None, 1]),
        (["DENSITY B", "DENSITY D"], "multiclass", ("A", "DENSITY B", "C", "DENSITY D"), [1, 3]),
        (["1", "2", "5", "4"], "binary", ("1-2", "3-4"), [0, 0, None, 1]),
        (["extremely dense", "Fatty"], "binary", ("A-B", "C-D"), [1, 0]),
        (["0", "1", "2"], "binary", ("0-1", "2-3"), [0, 0, 1]),
    ],
)
def test_classes(
    tmp_path: Path, values: list[str], classes: Any, names: tuple[str, ...], numbers: list[int | None]
) -> None:
    """A class is called as the file spells it, or canonically where it has several spellings or grades."""
    rows = "".join(f"x{index},{value}\n" for index, value in enumerate(values))
    labels = read_labels(write(tmp_path, HEADER + rows), SelectionConfig(classes=classes))
    assert labels.class_names == names
    assert [entry.label for entry in labels.entries.values()] == numbers


def test_unknown_values_are_skipped_if_asked(tmp_path: Path) -> None:
    """Values that are no grade, no value and contradictions leave out their images alone, with the line that says so."""
    rows = "a,2,\nb,7,\nc,,\nd,1,\na,3,\nd,1.0,\ne,C,\n"
    labels = read_labels(write(tmp_path, HEADER + rows), SKIP)
    assert label_of(labels) == {"d": 0}
    assert labels.class_names == ("1",)
    assert codes(labels) == dict.fromkeys("abce", Code.UNKNOWN_LABEL)
    assert "line 6" in labels.entries["a"].reason
    assert "line 2" in labels.entries["a"].reason
    assert "line 3, Classification: '7'" in labels.entries["b"].reason


def test_nothing_but_unknown_values(tmp_path: Path) -> None:
    """A file of values that nobody knows has no class; without leave to skip them, all scales are named."""
    path = write(tmp_path, HEADER + "a,high,\nb,low,\n")
    assert read_labels(path, SKIP).class_names == ()
    message = refusal(path, SelectionConfig())
    assert all(part in message for part in ("line 2", "'high'", "1, 2, 3, 4, 5", "0, 1, 2, 3", "A, B, C, D", "F, G, D"))


@pytest.mark.parametrize("accession", ["../x", "..", ".", "a/b", "/etc", "a\\b"])
def test_accession_number_that_is_a_path(tmp_path: Path, accession: str) -> None:
    """An accession number cannot name anything but a folder in the root."""
    labels = read_labels(write(tmp_path, HEADER + f"{accession},4,\nb,1,\n"))
    assert codes(labels) == {accession: Code.OUTSIDE_ROOT}
    assert labels.class_names == ("1",)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le", "utf-16-be"])
def test_spreadsheets(tmp_path: Path, delimiter: str, end: str, encoding: str) -> None:
    """Separators, line ends, byte order marks and encodings of spreadsheets, and line breaks in quotes, are read."""
    rows = [
        ['Notiz, als\nText; "so"', "CLASSIFICATION", " accessionnumber "],
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
    labels = read_labels(write(tmp_path, (end + end.join(lines) + end + end).encode(encoding)))
    assert label_of(labels) == {"007": 1, "08": 0}
    assert labels.entries["007"].line == 4
    assert labels.entries["08"].line == 6


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line", ["sep={}\n", '"sep={}"\r\n', 'SEP="{}"\r'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_line_that_tells_the_delimiter(tmp_path: Path, delimiter: str, line: str, encoding: str) -> None:
    """Excel's first line decides the delimiter, whatever else there is more of, and counts as a line."""
    cells = [["a,b;c\td,e;f\tg".replace(delimiter, " "), "Classification", "AccessionNumber"], ["", "1", "007"]]
    rows = "\n".join(map(delimiter.join, cells))
    labels = read_labels(write(tmp_path, (line.format(delimiter) + rows).encode(encoding)))
    assert label_of(labels) == {"007": 0}
    assert labels.entries["007"].line == 3


def test_a_line_that_tells_the_delimiter_is_counted(tmp_path: Path) -> None:
    """Messages name lines as an editor counts them, and a file of that line alone is refused as an empty one."""
    assert "line 3, Classification" in refusal(
        write(tmp_path, "sep=;\nAccessionNumber;Classification\na;9\n"), SelectionConfig()
    )
    assert "line 2: the columns are a, b" in refusal(write(tmp_path, "sep=;\na;b\n1;2\n"))
    assert "the columns are none" in refusal(write(tmp_path, "sep=;"))


@pytest.mark.parametrize("written", ['="0001"', '"=""0001"""', ' =" 0001 " '])
def test_text_formulas(tmp_path: Path, written: str) -> None:
    """Excel's formula that keeps the zeros of an accession number means that number, in a header its column."""
    labels = read_labels(write(tmp_path, f'="AccessionNumber",Classification\n{written},="2"\n0002,1\n'))
    assert label_of(labels) == {"0001": 1, "0002": 0}
    assert labels.class_names == ("1", "2")


@pytest.mark.parametrize("written", ["=0001", '="0001', "=", "'0001'"])
def test_what_is_no_text_formula(tmp_path: Path, written: str) -> None:
    """Nothing else is calculated."""
    assert label_of(read_labels(write(tmp_path, HEADER + f"{written},1,\n"))) == {written: 0}


CSV = "image,label,patient,view,laterality,split\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEADER + "a,1,\nb,7,\n", ["line 3", "Classification", "'7'", "1, 2, 3, 4, 5"]),
        (HEADER + "a,1,\nb,,\n", ["line 3", "Classification", "''"]),
        (HEADER + "a,A,\nb,2,\n", ["line 3", "'2'", "A, B, C, D"]),
        (HEADER + "a,F,\nb,G,\nc,A,\n", ["line 4", "'A'", "F, G, D"]),
        (HEADER + "a,0,\nb,4,\n", ["line 3", "'4'", "line 2"]),
        (HEADER + f"a,1,\nb,{'x' * 99},\n", ["line 3", "xxx...'"]),
        (HEADER + "accession-a,1,\naccession-a,2,\n", ["line 3", "'2'", "accession number of line 2", "'1'"]),
        (HEADER + ",1,\n", ["line 2", "AccessionNumber"]),
        (HEADER + "a\n", ["line 2", "fields"]),
        (HEADER + "a,1,,2\n", ["line 2", "4 fields", "3"]),
        (HEADER, ["no rows"]),
        ("", ["AccessionNumber"]),
        ("AccessionNumber,Grade\na,1\n", ["line 1", "Classification", "Grade"]),
        ("AccessionNumber,Classification,Classification\na,1,2\n", ["line 1", "2 columns Classification"]),
        (HEADER + 'a,"1,\n', ["line 2"]),
        (HEADER + 'a,1,\n"b"c,1,\n', ["line 3"]),
        (HEADER + "a,1,\nb,\0,\n", ["line 3", "NUL"]),
        (b"\xff\xfe\x00", ["UTF-16"]),
        (CSV + "a.png,1,accession-a,,,\na.png,1,accession-b,,,\n", ["line 3", "patient", "line 2"]),
        (CSV + "a.png,1,,,,\na.png,1,accession-a,,,\na.png,1,accession-b,,,\n", ["line 4", "patient", "line 3"]),
        (CSV + "a.png,1,,CC,,\na.png,1,,MLO,,\n", ["line 3", "view", "line 2"]),
        (CSV + "a.png,1\n", ["line 2", "2 of 6 fields", "laterality"]),
        ("accession-a;x;0000123\n", ["line 1", "(a number)"]),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path: Path, content: str | bytes, said: list[str]) -> None:
    """One line names the file, the row, the field, and what was expected; never an accession number or a patient."""
    message = refusal(write(tmp_path, content), SelectionConfig())
    assert all(part in message for part in said)
    assert "0000123" not in message
    assert isinstance(content, bytes) or content.startswith("accession-a") or "accession-" not in message


@pytest.mark.parametrize(
    ("content", "classes", "said"),
    [
        (HEADER + "a,F,\nb,G,\n", {"classes": "binary"}, ["F, G, D", "middle"]),
        (HEADER + "a,1,\nb,5,\n", {"classes": "binary", "include_class_5": True}, ["class 5"]),
        (HEADER + "a,0,\nb,4,\n", {"skip_unknown_labels": True}, ["line 3", "line 2"]),
        (HEADER + "a,1,\n", {"format": "csv"}, ["no column image", "AccessionNumber"]),
        (HEADER + "a,1,\n", {"format": "mini-mias"}, ["no rows"]),
        (CSV + "a,1,,,,\n", {"format": "archive"}, ["no column AccessionNumber", "laterality"]),
        (CSV + "a.png,1,,,,test\n./a.png,1,,,,train\n", {"published_split": True}, ["line 3", "split", "line 2"]),
        (CSV + "a.png,1,,,,fold 1\n", {"published_split": True}, ["line 2", "split", "'fold 1'", "validation or test"]),
        (CSV + "a.png,1\n", {"published_split": True}, ["line 2", "2 of 6 fields", "split"]),
    ],
)
def test_wrong_selections(tmp_path: Path, content: str, classes: dict[str, Any], said: list[str]) -> None:
    """What a file does not have cannot be asked of it, and no leave to skip makes up for it."""
    message = refusal(write(tmp_path, content), SelectionConfig(**classes))
    assert all(part in message for part in said)


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, is named in one line."""
    for path in (tmp_path / "absent.csv", tmp_path):
        refusal(path)


def test_a_large_file_is_read_at_once(tmp_path: Path) -> None:
    """The label file of the largest public set takes no time that anybody would notice."""
    rows = "".join(f"{number:07},{'1234'[number % 4]},2020-01-01\n" for number in range(20_000))
    path = write(tmp_path, HEADER + rows)
    start = time.perf_counter()
    labels = read_labels(path)
    keys = [labels.key_of(f"{number:07}/a/b.dcm") for number in range(20_000)]
    assert time.perf_counter() - start < 2
    assert keys == list(labels.entries)


def test_no_network_is_loaded() -> None:
    """A wrong label file is refused before a second has gone into loading torch."""
    code = "import sys, trainer.data.labels; print(sorted({'torch', 'pandas', 'sklearn'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


HEADERS = (
    HEADER,
    CSV,
    "File Name;ACR;View\n",
    "patient_id,breast_density,image file path\n",
    "study_id,image_id,breast_density,split\n",
    "patient_id,image_id,laterality,view,density\n",
    "mdb001 G NORM\n",
    "sep=;\nimage;label;split\n",
)
ROWS = st.text('abAB012345.,;\t"\n\r /\\<>mdFGD', max_size=80)


@settings(deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.builds(lambda header, rows: (header + rows).encode(), st.sampled_from(HEADERS), st.text(max_size=80) | ROWS),
    ),
    skip=st.booleans(),
    classes=st.sampled_from(["auto", "multiclass", "binary"]),
    wanted=st.sampled_from(["auto", "auto", "mini-mias", "csv"]),
)
def test_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, skip: bool, classes: Any, wanted: Any
) -> None:
    """Whatever is in a label file, it is read or refused in one line."""
    path = write(tmp_path_factory.getbasetemp(), content)
    selection = SelectionConfig(skip_unknown_labels=skip, classes=classes, format=wanted)
    try:
        labels = read_labels(path, selection)
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017  not always raised
    else:
        used = set(label_of(labels).values())
        assert used <= set(range(len(labels.class_names)))
        assert classes != "auto" or len(used) == len(labels.class_names)
        assert label_of(labels).keys() | codes(labels).keys() == labels.entries.keys()
        assert not label_of(labels).keys() & codes(labels).keys()
        assert all(len(entry.reason.splitlines()) == (entry.label is None) for entry in labels.entries.values())


CELLS = st.text(st.characters(codec="latin-1", exclude_characters="/\\\0"), max_size=12).map(str.strip)
CELLS = CELLS.filter(lambda cell: not cell.startswith('="'))  # Excel's formula for a text
KEYS = st.one_of(
    CELLS.filter(lambda cell: cell not in {"", ".", ".."}), st.from_regex(r"0{0,4}[0-9]{1,9}", fullmatch=True)
)
SCALES = st.sampled_from(["1234", "0123", "ABCD", ["DENSITY A", "DENSITY D"], ["F", "G"], ["1.0", "4.0"]])


@settings(deadline=None)
@given(data=st.data(), delimiter=st.sampled_from(",;\t"), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, delimiter: str, end: str) -> None:
    """What a spreadsheet writes is read as it is: every accession number, zeros and all, and every value."""
    value_of = data.draw(st.dictionaries(KEYS, st.sampled_from(data.draw(SCALES)), min_size=1, max_size=12))
    rows = [(value, data.draw(CELLS), key) for key, value in value_of.items()]
    broken = any("\r" in cell or "\n" in cell for row in rows for cell in row)  # Python 3.11 may leave those unquoted
    quoting = csv.QUOTE_ALL if broken or data.draw(st.booleans()) else csv.QUOTE_MINIMAL
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([("Classification", "a note", "AccessionNumber"), *rows])
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    path = write(tmp_path_factory.getbasetemp(), text.getvalue().encode(encoding))
    labels = read_labels(path)
    assert {key: labels.class_names[label] for key, label in label_of(labels).items()} == value_of
    assert list(labels.class_names) == sorted(labels.class_names, key="FG".find if "F" in labels.class_names else str)
    assert all(labels.key_of(f"{key}/image.dcm") == key for key in value_of)


@settings(deadline=None)
@given(data=st.data())
def test_order_of_rows_means_nothing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """The same rows in another order are the same labels, patients and classes."""
    values = data.draw(st.sampled_from([["1", "1.0", "3", "4", "5", ""], ["0", "1", "2", "x"], ["A", "a", "C", "D"]]))
    row = st.tuples(*map(st.sampled_from, (["a", "b", "c", "../d"], values, ["", "p", "q"], ["", "train", "test"])))
    rows = data.draw(st.lists(row, min_size=1, max_size=8))
    results = []
    for order in (rows, data.draw(st.permutations(rows))):
        lines = "".join(",".join(cells) + "\n" for cells in order)
        path = write(tmp_path_factory.getbasetemp(), "image,label,patient,split\n" + lines)
        try:
            labels = read_labels(path, SelectionConfig(skip_unknown_labels=True, published_split=True))
        except InputError as error:
            results.append(type(error))
            continue
        used = {key: entry for key, entry in labels.entries.items() if entry.label is not None}
        said = {key: (entry.label, entry.patient, entry.split) for key, entry in used.items()}
        results.append((said, codes(labels), labels.class_names))
    assert results[0] == results[1]
