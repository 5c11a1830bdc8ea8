from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trainer.data.division import holdout, make_folds
from trainer.data.folds import SET_ASIDE, from_csv, split_hash, to_csv
from trainer.data.records import Dataset, ImageRecord
from trainer.errors import DataError


def dataset(patients_by_class: tuple[int, ...], images: int = 4) -> Dataset:
    """A data set without pixels: that many patients of each class, with *images* each."""
    records = [
        ImageRecord(
            f"{label}-{patient:03d}/{image}", "", f"{label}-{patient:03d}", f"P{label}-{patient}", label, None, None
        )
        for label, patients in enumerate(patients_by_class)
        for patient in range(patients)
        for image in range(images)
    ]
    names = tuple("1234"[: len(patients_by_class)])
    return Dataset(np.zeros((len(records), 2, 2), np.uint8), tuple(records), names, (), "hash")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("patients", "n_folds"), [((10, 30, 30, 10), 5), ((4, 8, 8, 4), 3), ((53, 52, 56), 3)])
def test_folds_keep_patients_together_and_classes_spread(patients: tuple[int, ...], n_folds: int, seed: int) -> None:
    """No patient is in two folds, every image is in one, and every class has its share in each."""
    data = dataset(patients)
    folds = make_folds(data, n_folds, seed)
    seen = np.concatenate([folds.split(fold).validation for fold in range(n_folds)])
    np.testing.assert_array_equal(np.sort(seen), np.arange(len(data.records)))
    for fold in range(n_folds):
        split = folds.split(fold)
        assert not {data.patients[i] for i in split.train} & {data.patients[i] for i in split.validation}
        counts = np.bincount(data.labels[split.validation], minlength=len(patients)) / 4
        assert (np.abs(counts - np.array(patients) / n_folds) <= 2).all()


def test_folds_are_a_matter_of_the_seed() -> None:
    """The same seed gives the same folds and hash; another seed gives others."""
    data = dataset((10, 10))
    assert make_folds(data, 5, 1).hash == make_folds(data, 5, 1).hash
    assert make_folds(data, 5, 1).hash != make_folds(data, 5, 2).hash


def test_folds_as_a_table() -> None:
    """Folds survive the way through the table, which has labels as the label file writes them."""
    data = dataset((5, 5))
    folds = make_folds(data, 5, 7)
    text = to_csv(folds, data)
    assert text.splitlines()[0] == "image,patient,label,fold"
    assert text.splitlines()[-1] == f"1-004/3,P1-4,2,{folds.assignment[-1]}"
    back = from_csv(text, data)
    np.testing.assert_array_equal(back.assignment, folds.assignment)
    assert (back.n_folds, back.hash) == (5, folds.hash)


def test_folds_of_other_data_are_refused() -> None:
    """An image too many, one too few, another patient, another label or no fold: each is refused in one line."""
    data = dataset((5, 5))
    text = to_csv(make_folds(data, 5, 7), data)
    fewer = dataclasses.replace(data, records=data.records[1:])
    wrong = [
        (text, fewer),
        (to_csv(make_folds(data, 5, 7), data).replace("0-000/0", "0-000/9"), data),
        (text.replace("P0-0,", "P0-x,", 1), data),
        (text.replace("P0-0,1", "P0-0,2", 1), data),
        (text.replace("image,", "path,"), data),
        (text.replace("P0-0,1,", "P0-0,1,x", 1), data),
    ]
    for table, images in wrong:
        with pytest.raises(DataError) as error:
            from_csv(table, images)
        assert "\n" not in str(error.value)


def test_too_few_patients() -> None:
    """Fewer patients than folds, or too few of one class, is an error that names the class and a fold."""
    with pytest.raises(DataError, match="2 patients cannot be spread over 3 folds"):
        make_folds(dataset((1, 1)), 3, 0)
    with pytest.raises(DataError, match="class '2' has 2 patients: it would be absent from fold 2 of 3"):
        make_folds(dataset((10, 2)), 3, 0)


@pytest.mark.parametrize("val_frac", [0.05, 0.2, 0.5, 0.95])
def test_holdout(val_frac: float) -> None:
    """A share of each class's patients is held out, at least one and never all."""
    data = dataset((10, 3, 40))
    split = holdout(data, val_frac, 3)
    assert not {data.patients[i] for i in split.train} & {data.patients[i] for i in split.validation}
    held_out = np.bincount(data.labels[split.validation]) / 4
    np.testing.assert_array_equal(held_out, [min(max(1, round(val_frac * n)), n - 1) for n in (10, 3, 40)])
    assert (
        split_hash(split, data)
        == split_hash(holdout(data, val_frac, 3), data)
        != split_hash(holdout(data, val_frac, 4), data)
    )


def test_holdout_needs_two_patients_of_each_class() -> None:
    """A class with one patient cannot be on both sides."""
    with pytest.raises(DataError, match="class '2' has 1 patients"):
        holdout(dataset((5, 1)), 0.2, 0)


def published(*sides: str, patients_of_a_class: int = 6) -> Dataset:
    """A data set of two classes whose patients go round the *sides* of a published split, two images each."""
    data = dataset((patients_of_a_class, patients_of_a_class), images=2)
    records = [
        dataclasses.replace(record, split=sides[int(record.patient.partition("-")[2]) % len(sides)])
        for record in data.records
    ]
    return dataclasses.replace(data, records=tuple(records))


def test_a_published_split_decides_who_validates() -> None:
    """Validation images validate and test images are on neither side; without validation images the test images validate."""
    data = published("train", "validation", "test")
    split = holdout(data, 0.5, 0)
    assert {data.records[index].split for index in split.train} == {"train"}
    assert {data.records[index].split for index in split.validation} == {"validation"}
    assert len(split.train) == len(split.validation) == 8
    data = published("train", "train", "test")
    split = holdout(data, 0.5, 0)
    assert {data.records[index].split for index in split.validation} == {"test"}
    with pytest.raises(DataError, match="neither validation nor test"):
        holdout(published("train"), 0.2, 0)


def test_folds_leave_a_published_test_set_aside() -> None:
    """Test images are on neither side of any fold, also after the way through the table; all others are in one fold."""
    data = published("train", "validation", "test")
    folds = make_folds(data, 2, 0)
    folds = from_csv(to_csv(folds, data), data)
    is_test = np.array([record.split == "test" for record in data.records])
    assert (folds.assignment[is_test] == SET_ASIDE).all()
    for fold in range(2):
        split = folds.split(fold)
        assert not is_test[split.train].any()
        assert not is_test[split.validation].any()
        assert len(split.train) + len(split.validation) == 16
    assert folds.largest_training_side == max(len(folds.split(fold).train) for fold in range(2))


def test_a_published_split_with_a_patient_on_both_sides() -> None:
    """It is refused, by folds as by a single split."""
    data = published("train", "test")
    records = (dataclasses.replace(data.records[0], split="test"), *data.records[1:])
    leaking = dataclasses.replace(data, records=records)
    said = r"1 patients both among its (validation|test) images and elsewhere"
    for divide in (lambda: holdout(leaking, 0.2, 0), lambda: make_folds(leaking, 2, 0)):
        with pytest.raises(DataError, match=said):
            divide()
