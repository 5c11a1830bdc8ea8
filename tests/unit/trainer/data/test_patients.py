from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.data.patients import Belonging, group_patients


def headers(*images: tuple[str, str | None]) -> list[Belonging]:
    """Images of a label file without patients: accession number and PatientID."""
    return [Belonging(None, patient_id, accession) for accession, patient_id in images]


def test_patients_are_groups() -> None:
    """Images are one patient's when they share a PatientID or an accession number, through others too."""
    images = headers(
        ("a1", "P_1_LEFT"), ("a1", "P_1_RIGHT"), ("a2", "P_1_LEFT"), ("a3", None), ("a3", None), ("a4", "P_4"), ("a5", "P_4")
    )  # fmt: skip
    assert group_patients(images) == ["P_1_LEFT"] * 3 + ["a3"] * 2 + ["P_4"] * 2


def test_the_label_files_patient_names_the_group() -> None:
    """What the label file calls a patient counts before what headers say, and both join images."""
    images = [
        Belonging("17", "x", "a"),
        Belonging("17", "y", "b"),
        Belonging(None, "y", "c"),
        Belonging("18", "z", "d"),
    ]
    assert group_patients(images) == ["17", "17", "17", "18"]


def test_an_anonymisers_patient_id_joins_nobody() -> None:
    """One PatientID for a whole archive says nothing where the label file tells its patients apart."""
    images = [Belonging(patient, "same", image) for patient, image in (("1", "a"), ("1", "b"), ("2", "c"))]
    assert group_patients(images) == ["1", "1", "2"]
    assert group_patients(headers(("a", "same"), ("b", "same"))) == ["same", "same"]


def test_images_with_the_same_pixels_join_their_patients() -> None:
    """Whoever shares an image shares all others too."""
    images = headers(("a", "P1"), ("b", "P2"), ("b", "P2"), ("c", "P3"))
    assert group_patients(images, [(0, 1)]) == ["P1", "P1", "P1", "P3"]


names = st.sampled_from([None, "p", "q", "r", "s"])


@given(st.lists(st.builds(Belonging, names, names, st.sampled_from("abcdef")), max_size=12), st.randoms())
def test_groups_do_not_depend_on_the_order(images: list[Belonging], random: object) -> None:
    """Images that share anything are never apart, and another order of the files gives the same names."""
    patients = group_patients(images)
    for one, patient in zip(images, patients, strict=True):
        for other, another in zip(images, patients, strict=True):
            if one.accession == other.accession or (one.stated is not None and one.stated == other.stated):
                assert patient == another
    shuffled = list(range(len(images)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = group_patients([images[place] for place in shuffled])
    assert [again[shuffled.index(place)] for place in range(len(images))] == patients
