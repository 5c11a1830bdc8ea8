"""Who is whose: images that must never be on two sides of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_Node = tuple[str, str]


@dataclass(frozen=True)
class Belonging:
    """What is known of whom an image shows."""

    stated: str | None
    """The patient that the label file names."""
    patient_id: str | None
    """Of the DICOM's header."""
    accession: str
    """Key in the label file."""


def group_patients(images: Sequence[Belonging], same: Iterable[tuple[int, int]] = ()) -> list[str]:
    """
    Return the patient of each image: the name that the label file gives, else the PatientID, else the accession number.

    Images are of one group when they share any of the three, also by way of others: some archives write the view into the
    PatientID ("P_00820_RIGHT_CC"), which would put one patient on both sides of a split. The first name of a group counts.

    Args:
        images: What is known of each.
        same: Pairs of images, by their places, that are one patient's for another reason: they have the same pixels.
    """
    parent: dict[_Node, _Node] = {}

    def find(node: _Node) -> _Node:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    ignored = _patient_id_of_everybody(images)
    names: set[_Node] = set()
    for image in images:
        own = ("accession", image.accession)
        for kind, name in (("stated", image.stated), ("patient", image.patient_id)):
            if name is not None and not (kind == "patient" and name == ignored):
                parent[find(own)] = find((kind, name))
                names.add((kind, name))
    for one, other in same:
        parent[find(("accession", images[one].accession))] = find(("accession", images[other].accession))
    name_of: dict[_Node, str] = {}
    # Stated names before PatientIDs, each in their order.
    for kind, name in sorted(names, key=lambda node: (node[0] != "stated", node[1])):
        name_of.setdefault(find((kind, name)), name)
    for image in sorted(images, key=lambda image: image.accession):
        name_of.setdefault(find(("accession", image.accession)), image.accession)
    return [name_of[find(("accession", image.accession))] for image in images]


def _patient_id_of_everybody(images: Sequence[Belonging]) -> str | None:
    """Return the PatientID that all images share although the label file names several patients: an anonymiser's."""
    patient_ids = {image.patient_id for image in images}
    stated = {image.stated for image in images}
    if len(patient_ids) == 1 and len(stated - {None}) > 1:
        return patient_ids.pop()
    return None
