"""
The spellings of a density grade, the scales that they belong to, and the classes that are made of a scale.

A value is a grade only if it stands in a table here: what merely looks like a number is none. Which table holds is decided
once for a whole file, never value by value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.data.label_table import show
from trainer.errors import InputError


def squeeze(value: str) -> str:
    """Return *value* with one blank where it has several, and none around it."""
    return " ".join(value.split())


@dataclass(frozen=True)
class Scale:
    """Grades from the least dense to the densest."""

    grades: tuple[str, ...]
    """Canonical names, in order."""
    table: Mapping[str, int]
    """Place of the grade in `grades`, by spelling: case-folded and squeezed."""

    def grade_of(self, value: str) -> int | None:
        """Return the place of the grade that *value* spells, or None."""
        return self.table.get(squeeze(value).casefold())

    def known(self) -> str:
        """Return the canonical names as a message lists them."""
        return ", ".join(self.grades)


_PREFIXES = ("density", "bi-rads", "birads", "acr", "type")
_ROMAN = ("i", "ii", "iii", "iv")
_WORDS = (
    (
        "almost entirely fatty",
        "almost entirely fat",
        "the breasts are almost entirely fatty",
        "entirely fatty",
        "fatty",
    ),
    (
        "scattered areas of fibroglandular density",
        "scattered areas of fibroglandular densities",
        "there are scattered areas of fibroglandular density",
        "scattered fibroglandular density",
        "scattered fibroglandular densities",
        "scattered",
    ),
    (
        "heterogeneously dense",
        "the breasts are heterogeneously dense, which may obscure small masses",
        "heterogeneous",
    ),
    (
        "extremely dense",
        "the breasts are extremely dense, which lowers the sensitivity of mammography",
        "extreme",
    ),
)
"""As BI-RADS words the grades a to d, and the usual short forms."""


def _numbers(first: int, last: int) -> dict[str, int]:
    """Return the spellings of the numbers from *first* to *last*; a spreadsheet writes 1 as 1.0, and nothing else is a 1."""
    return {f"{number}{end}": number - first for number in range(first, last + 1) for end in ("", ".0")}


def _prefixed(names: Iterable[str]) -> dict[str, int]:
    """Return the spellings of grades called *names*, alone and after the words that are put before them."""
    return {
        prefix + name: grade for grade, name in enumerate(names) for prefix in ("", *(f"{word} " for word in _PREFIXES))
    }


_FROM_1 = {**_numbers(1, 4), **_prefixed("1234"), **_prefixed(_ROMAN)}
NUMBERS = Scale(tuple("1234"), _FROM_1)
CLASS_5 = 4
"""Place of class 5: not a density grade but a category of its own in these archives."""
NUMBERS_AND_5 = Scale(tuple("12345"), {**_FROM_1, **_numbers(1, 5)})
NUMBERS_FROM_0 = Scale(tuple("0123"), _numbers(0, 3))
LETTERS = Scale(
    tuple("ABCD"),
    {**_prefixed("abcd"), **{words: grade for grade, spellings in enumerate(_WORDS) for words in spellings}},
)
TISSUES = Scale(tuple("FGD"), {"f": 0, "g": 1, "d": 2})
"""Fatty, fatty-glandular, dense-glandular: the scale of MIAS."""

OPEN_SCALES = (NUMBERS_AND_5, NUMBERS_FROM_0, LETTERS, TISSUES)
"""What a file of no published format may use."""


@dataclass(frozen=True)
class Use:
    """How a file uses one value."""

    count: int
    """Rows that have it."""
    line: int
    """The first of them, from 1."""


def choose_scale(path: Path, column: str, uses: Mapping[str, Use]) -> Scale:
    """
    Return the scale that most rows fit; of several, the one that a row fits first.

    Raises:
        InputError: numbers, of which a 0 and a 4 or 5 occur, so that neither base is credible.
    """
    families = ((NUMBERS_AND_5, NUMBERS_FROM_0), (LETTERS,), (TISSUES,))

    def fit(family: tuple[Scale, ...]) -> tuple[int, int]:
        fitting = [use for value, use in uses.items() if any(scale.grade_of(value) is not None for scale in family)]
        return sum(use.count for use in fitting), -min((use.line for use in fitting), default=0)

    family = max(families, key=fit)
    return family[0] if len(family) == 1 else _choose_base(path, column, uses)


def _choose_base(path: Path, column: str, uses: Mapping[str, Use]) -> Scale:
    """Return the scale of a file of numbers. Raises InputError where none is credible."""
    zeros = [value for value in uses if NUMBERS_FROM_0.grade_of(value) == 0]
    if not zeros:
        return NUMBERS_AND_5
    high = [value for value in uses if (NUMBERS_AND_5.grade_of(value) or 0) >= NUMBERS_AND_5.grades.index("4")]
    if not high:
        return NUMBERS_FROM_0
    zero, four = (min(values, key=lambda value: uses[value].line) for values in (zeros, high))
    raise InputError(
        f"{path}: line {uses[four].line}, {column}: {show(four)} beside a {show(zero)} in line {uses[zero].line}, "
        "expected 0 to 3 or 1 to 5 in the whole file"
    )


@dataclass(frozen=True)
class Classes:
    """What the labels of a data set mean."""

    label_of: dict[int, int]
    """Label 0..C-1 by place of the grade; a grade that is left out is not in it."""
    names: tuple[str, ...]
    """In label order."""


def choose_classes(
    path: Path,
    scale: Scale,
    wanted: Literal["auto", "multiclass", "binary"],
    present: AbstractSet[int],
    left_out: AbstractSet[int],
    spellings: Mapping[int, str],
) -> Classes:
    """
    Return the classes for a file of *scale*, of which the grades *present* are used and those *left_out* must not be.

    A class that is one grade is called as the file spells that grade, where it has one spelling for it.

    Raises:
        InputError: a binary scale is wanted, and this one has no lower and upper half.
    """
    if wanted == "binary":
        return _halves(path, scale, present)
    chosen = present if wanted == "auto" else set(range(len(scale.grades)))
    grades = sorted(chosen - left_out)
    return Classes(
        label_of={grade: label for label, grade in enumerate(grades)},
        names=tuple(spellings.get(grade, scale.grades[grade]) for grade in grades),
    )


def _halves(path: Path, scale: Scale, present: AbstractSet[int]) -> Classes:
    """Return the lower two grades of *scale* and the upper two. Raises InputError where it has others."""
    if CLASS_5 in present:
        raise InputError(
            f"{path}: class 5 is in neither half of the grades, expected no include_class_5 with classes binary"
        )
    grades = scale.grades[:CLASS_5]
    if len(grades) % 2:
        raise InputError(f"{path}: the grades {scale.known()} have no middle, expected classes auto or multiclass")
    half = len(grades) // 2
    return Classes(
        label_of={grade: grade // half for grade in range(len(grades))},
        names=("-".join(grades[:half]), "-".join(grades[half:])),
    )
