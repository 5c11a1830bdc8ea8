from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.grades import (
    CLASS_5,
    LETTERS,
    NUMBERS,
    NUMBERS_AND_5,
    NUMBERS_FROM_0,
    OPEN_SCALES,
    TISSUES,
    Scale,
    Use,
    choose_classes,
    choose_scale,
)
from trainer.errors import InputError

FILE = Path("labels.csv")


def uses(values: str) -> dict[str, Use]:
    """Each of the words of *values* in a line of its own, from line 2."""
    words = values.split(" ")
    return {word: Use(words.count(word), words.index(word) + 2) for word in dict.fromkeys(words)}


@pytest.mark.parametrize(
    ("scale", "grade", "spellings"),
    [
        (NUMBERS, 0, ["1", "1.0", "I", "ACR 1", "ACR I", "BI-RADS 1", "BIRADS 1", "Type I", "density 1"]),
        (NUMBERS, 1, ["2", "ACR II", "type 2", "BI-RADS  II"]),
        (NUMBERS, 3, ["4", "4.0", "IV", "acr iv", "Density 4"]),
        (NUMBERS_AND_5, 3, ["4", "4.0", "ACR 4"]),
        (NUMBERS_AND_5, CLASS_5, ["5", "5.0"]),
        (NUMBERS_FROM_0, 0, ["0", "0.0"]),
        (NUMBERS_FROM_0, 3, ["3", "3.0"]),
        (LETTERS, 0, ["A", "a", "DENSITY A", "Density a", "Almost entirely fatty", "almost entirely fat"]),
        (LETTERS, 1, ["BI-RADS B", "birads b", "Scattered  areas of\nfibroglandular density", "scattered"]),
        (LETTERS, 2, ["ACR C", "TYPE C", " c ", "HETEROGENEOUSLY DENSE"]),
        (LETTERS, 3, ["D", "density\td", "extremely dense"]),
        (TISSUES, 0, ["F", "f"]),
        (TISSUES, 1, ["G"]),
        (TISSUES, 2, ["D"]),
    ],
)
def test_spellings(scale: Scale, grade: int, spellings: list[str]) -> None:
    """Every spelling in the table is its grade, whatever the case and the blanks."""
    assert [scale.grade_of(value) for value in spellings] == [grade] * len(spellings)


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "01", "1.", "1.00", "1,0", "+1", "-1", "1e0", "6", "1-2", "A/B", "AB", "E", "V", "DENSITY", "DENSITY E",
        "DENSITYC", "ACR 5", "ACR 0", "BI-RADS 1.0", "dense", "nan", "none", "\u0661", "\uff11", "\u00b2", "NOT A", "1 2", "4+",
    ],
)  # fmt: skip
def test_what_is_no_grade(value: str) -> None:
    """What only looks like a grade is none in any scale: nothing is parsed."""
    assert [scale.grade_of(value) for scale in OPEN_SCALES] == [None] * len(OPEN_SCALES)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ("1 2 3 4", NUMBERS_AND_5),
        ("4", NUMBERS_AND_5),
        ("1 2 3", NUMBERS_AND_5),
        ("5 5 5", NUMBERS_AND_5),
        ("0", NUMBERS_FROM_0),
        ("3 2 1 0", NUMBERS_FROM_0),
        ("0.0 1.0", NUMBERS_FROM_0),
        ("A", LETTERS),
        ("D", LETTERS),
        ("B C D", LETTERS),
        ("D G D", TISSUES),
        ("F", TISSUES),
        ("A 2 2", NUMBERS_AND_5),
        ("A A 2", LETTERS),
        ("A 2", LETTERS),
        ("2 A", NUMBERS_AND_5),
        ("x A y 2", LETTERS),
        ("A B 0 A 4", LETTERS),
        ("x y", NUMBERS_AND_5),
    ],
)
def test_scale_is_the_file_s(values: str, scale: Scale) -> None:
    """Most rows decide which scale a file has; of several, the first row; and a 0 decides the base."""
    assert choose_scale(FILE, "grade", uses(values)) is scale


@pytest.mark.parametrize(
    ("values", "said"), [("0 1 4", ["line 4", "'4'", "line 2"]), ("5.0 0.0", ["line 2", "'5.0'", "line 3"])]
)
def test_no_base(values: str, said: list[str]) -> None:
    """A 0 beside a 4 or a 5 leaves no base that is credible, and both lines are named."""
    with pytest.raises(InputError) as error:
        choose_scale(FILE, "grade", uses(values))
    assert all(part in str(error.value) for part in ["labels.csv", "grade", *said])


@pytest.mark.parametrize(
    ("scale", "wanted", "present", "left_out", "names", "labels"),
    [
        (NUMBERS_AND_5, "auto", {3, 0}, {4}, ("1", "4"), {0: 0, 3: 1}),
        (NUMBERS_AND_5, "auto", {0, 4}, set(), ("1", "5"), {0: 0, 4: 1}),
        (NUMBERS_AND_5, "multiclass", {0}, {4}, ("1", "2", "3", "4"), {0: 0, 1: 1, 2: 2, 3: 3}),
        (NUMBERS_AND_5, "multiclass", {0}, set(), ("1", "2", "3", "4", "5"), {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}),
        (NUMBERS_AND_5, "binary", {0}, {4}, ("1-2", "3-4"), {0: 0, 1: 0, 2: 1, 3: 1}),
        (NUMBERS_AND_5, "binary", {0}, set(), ("1-2", "3-4"), {0: 0, 1: 0, 2: 1, 3: 1}),
        (NUMBERS, "binary", {0, 3}, {4}, ("1-2", "3-4"), {0: 0, 1: 0, 2: 1, 3: 1}),
        (NUMBERS_FROM_0, "binary", set(), {4}, ("0-1", "2-3"), {0: 0, 1: 0, 2: 1, 3: 1}),
        (LETTERS, "binary", {1}, {4}, ("A-B", "C-D"), {0: 0, 1: 0, 2: 1, 3: 1}),
        (LETTERS, "auto", {1}, {4}, ("Type B",), {1: 0}),
        (LETTERS, "multiclass", {1}, {4}, ("A", "Type B", "C", "D"), {0: 0, 1: 1, 2: 2, 3: 3}),
        (TISSUES, "multiclass", {2}, {4}, ("F", "G", "D"), {0: 0, 1: 1, 2: 2}),
        (TISSUES, "auto", set(), {4}, (), {}),
    ],
)  # fmt: skip
def test_classes(
    scale: Scale, wanted: str, present: set[int], left_out: set[int], names: tuple[str, ...], labels: dict[int, int]
) -> None:
    """Auto takes what is there, multiclass the whole scale, binary its halves; labels follow the order of the scale."""
    spellings = {1: "Type B"} if scale is LETTERS else {}
    classes = choose_classes(FILE, scale, wanted, present, left_out, spellings)  # type: ignore[arg-type]
    assert classes.names == names
    assert classes.label_of == labels


@pytest.mark.parametrize(
    ("scale", "present", "said"), [(TISSUES, {0}, "F, G, D"), (NUMBERS_AND_5, {0, CLASS_5}, "include_class_5")]
)
def test_no_halves(scale: Scale, present: set[int], said: str) -> None:
    """Three grades have no middle, and class 5 is on neither side of it."""
    with pytest.raises(InputError, match=said) as error:
        choose_classes(FILE, scale, "binary", present, set(), {})
    assert "expected" in str(error.value)
