from __future__ import annotations

from itertools import pairwise

from trainer.data.archive import Candidate
from trainer.data.decoding import Outcome, settle
from trainer.data.inspection import Usable
from trainer.data.labels import Entry
from trainer.data.patients import Belonging
from trainer.data.records import Code


def usable(path: str, label: int, patient: str) -> Usable:
    """A file that can be decoded, in a folder that is its accession number."""
    accession = path.partition("/")[0]
    entry = Entry(2, label, None, "", None, None, None, None)
    candidate = Candidate(path, path, accession, None, label, entry, None)
    belonging = Belonging(None, patient, accession)
    return Usable(candidate, None, "sha", belonging, patient, 4, "CC", "L", for_processing=False)


def test_the_same_pixels_with_the_same_label_are_kept_once() -> None:
    """The first is used, the others are listed, and whoever they are said to be is one patient from then on."""
    files = [usable("01/a", 1, "P1"), usable("02/a", 1, "P2"), usable("02/b", 1, "P2"), usable("03/a", 0, "P3")]
    settled = settle(files, [Outcome("x"), Outcome("x"), Outcome("y"), Outcome("z")])
    assert settled.rows == [0, 2, 3]
    assert [(record.path, record.patient) for record in settled.records] == [
        ("01/a", "P1"),
        ("02/b", "P1"),
        ("03/a", "P3"),
    ]
    (rejection,) = settled.rejections
    assert (rejection.path, rejection.code) == ("02/a", Code.DUPLICATE)
    assert "01/a" in rejection.reason


def test_the_same_pixels_with_different_labels_are_used_nowhere() -> None:
    """None of them is used, each says beside which other one, and they are one patient's all the same."""
    same = [usable("01/a", 1, "P1"), usable("02/a", 0, "P2"), usable("03/a", 1, "P3")]
    files = [*same, usable("02/b", 0, "P2"), usable("03/b", 1, "P3")]
    settled = settle(files, [Outcome("x"), Outcome("x"), Outcome("x"), Outcome("y"), Outcome("z")])
    assert settled.rows == [3, 4]
    assert [record.patient for record in settled.records] == ["P1", "P1"]
    assert {rejection.path: rejection.code for rejection in settled.rejections} == dict.fromkeys(
        ("01/a", "02/a", "03/a"), Code.CONFLICTING_DUPLICATE
    )
    for rejection in settled.rejections:
        assert rejection.path not in rejection.reason


def test_rows_are_of_what_was_decoded() -> None:
    """A file that could not be decoded has no row, and is no duplicate of another one."""
    files = [usable(f"0{number}/a", 0, f"P{number}") for number in range(5)]
    broken = Outcome(None, Code.TRUNCATED, "ends")
    settled = settle(files, [broken, Outcome("x"), broken, Outcome("y"), Outcome("x")])
    assert settled.rows == [0, 1]
    assert [record.path for record in settled.records] == ["01/a", "03/a"]
    assert sorted((rejection.path, rejection.code) for rejection in settled.rejections) == [
        ("00/a", Code.TRUNCATED),
        ("02/a", Code.TRUNCATED),
        ("04/a", Code.DUPLICATE),
    ]
    assert all(one < other for one, other in pairwise(settled.rows))
